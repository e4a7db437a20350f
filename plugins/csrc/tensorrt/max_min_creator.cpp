#include "max_min_creator.h"

#include <cstring>
#include <new>

#include "../max_min.h"
#include "log.h"

namespace divprune {
namespace {

// ONNX integers arrive as INT32 from TensorRT's parser; networks built by hand may say INT64. 0: not usable.
int64_t read_keep(nvinfer1::PluginFieldCollection const* fields) {
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
        const nvinfer1::PluginField& field = fields->fields[i];
        if (field.name == nullptr || std::strcmp(field.name, kKeepField) != 0) {
            continue;
        }
        if (field.data == nullptr || field.length != 1) {
            return 0;
        }
        if (field.type == nvinfer1::PluginFieldType::kINT32) {
            return *static_cast<const int32_t*>(field.data);
        }
        if (field.type == nvinfer1::PluginFieldType::kINT64) {
            return *static_cast<const int64_t*>(field.data);
        }
        return 0;
    }
    return 0;
}

}  // namespace

MaxMinCreator::MaxMinCreator()
    : field_(kKeepField, nullptr, nvinfer1::PluginFieldType::kINT32, 1), names_{1, &field_} {}

nvinfer1::IPluginV3* MaxMinCreator::createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                                 nvinfer1::TensorRTPhase) noexcept {
    const int64_t keep = read_keep(fields);
    if (keep < 1 || keep > INT32_MAX) {
        log_error("node '%s' needs the attribute k, one positive integer.", name == nullptr ? "" : name);
        return nullptr;
    }
    return new (std::nothrow) MaxMinPlugin(static_cast<int32_t>(keep));
}

}  // namespace divprune

// What TensorRT looks for when it loads a plugin library; nothing else of this wrapper is visible.
extern "C" DIVPRUNE_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static divprune::MaxMinCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" DIVPRUNE_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { divprune::set_logger_finder(finder); }
