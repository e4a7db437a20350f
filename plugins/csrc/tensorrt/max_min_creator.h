// Makes the plugin from a node's attribute, or from what a plan serialized.

#pragma once

#include <NvInfer.h>

#include "max_min_plugin.h"

namespace divprune {

class MaxMinCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    MaxMinCreator();

    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }
    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

private:
    nvinfer1::PluginField field_;
    nvinfer1::PluginFieldCollection names_;
};

}  // namespace divprune
