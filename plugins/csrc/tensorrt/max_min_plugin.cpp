#include "max_min_plugin.h"

#include <new>

#include "../max_min.h"
#include "log.h"

namespace divprune {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int32_t kInputs = 2;
constexpr int32_t kOutputs = 2;
constexpr int32_t kRefused = 1;

bool is_token_type(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

int32_t to_dtype(DataType type) {
    return type == DataType::kFLOAT   ? DIVPRUNE_FLOAT32
           : type == DataType::kHALF ? DIVPRUNE_FLOAT16
                                      : DIVPRUNE_BFLOAT16;
}

// Logs why the counts do not fit the node; true if they do.
bool counts_fit(int32_t inputs, int32_t outputs) {
    if (inputs != kInputs || outputs != kOutputs) {
        log_error("the node has 2 inputs (visual_tokens, valid) and 2 outputs, not %d and %d.", inputs, outputs);
        return false;
    }
    return true;
}

// The sizes of one call, checked; logs the first thing wrong.
bool to_problem(Dims const& tokens, Dims const& valid, DataType type, int32_t keep, divprune_problem* problem) {
    if (tokens.nbDims != 3 || valid.nbDims != 2) {
        log_error("visual_tokens must be [batch, N, D] and valid [batch, N], but they have %d and %d dimensions.",
                  tokens.nbDims, valid.nbDims);
        return false;
    }
    if (tokens.d[0] != valid.d[0] || tokens.d[1] != valid.d[1]) {
        log_error("valid is [%lld, %lld], but visual_tokens has %lld x %lld rows.", static_cast<long long>(valid.d[0]),
                  static_cast<long long>(valid.d[1]), static_cast<long long>(tokens.d[0]),
                  static_cast<long long>(tokens.d[1]));
        return false;
    }
    for (int32_t i = 0; i < tokens.nbDims; ++i) {
        if (tokens.d[i] < 1 || tokens.d[i] > INT32_MAX) {
            log_error("dimension %d of visual_tokens is %lld.", i, static_cast<long long>(tokens.d[i]));
            return false;
        }
    }
    *problem = divprune_problem{};
    problem->batch = static_cast<int32_t>(tokens.d[0]);
    problem->candidates = static_cast<int32_t>(tokens.d[1]);
    problem->width = static_cast<int32_t>(tokens.d[2]);
    problem->keep = keep;
    problem->dtype = to_dtype(type);
    uint64_t bytes = 0;
    const int status = divprune_workspace_bytes(problem, &bytes);
    if (status != DIVPRUNE_OK) {
        log_error("visual_tokens [%d, %d, %d] with k = %d: %s", problem->batch, problem->candidates, problem->width,
                  keep, divprune_status_message(status));
        return false;
    }
    return true;
}

bool same(Dims const& a, Dims const& b) {
    bool equal = a.nbDims == b.nbDims;
    for (int32_t i = 0; equal && i < a.nbDims; ++i) {
        equal = a.d[i] == b.d[i];
    }
    return equal;
}

}  // namespace

MaxMinPlugin::MaxMinPlugin(int32_t keep)
    : keep_(keep), field_(kKeepField, &keep_, nvinfer1::PluginFieldType::kINT32, 1), fields_{1, &field_} {}

nvinfer1::IPluginCapability* MaxMinPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* MaxMinPlugin::clone() noexcept { return new (std::nothrow) MaxMinPlugin(keep_); }

int32_t MaxMinPlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, DataType const* inputs,
                                         int32_t input_count) const noexcept {
    if (!counts_fit(input_count, output_count)) {
        return kRefused;
    }
    if (!is_token_type(inputs[0])) {
        log_error("visual_tokens must be float32, float16 or bfloat16.");
        return kRefused;
    }
    if (inputs[1] != DataType::kBOOL) {
        log_error("valid must be bool.");
        return kRefused;
    }
    outputs[0] = inputs[0];
    outputs[1] = DataType::kINT64;
    return 0;
}

int32_t MaxMinPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
                                      nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs,
                                      int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
    if (!counts_fit(input_count, output_count)) {
        return kRefused;
    }
    if (inputs[0].nbDims != 3 || inputs[1].nbDims != 2) {
        log_error("visual_tokens must be [batch, N, D] and valid [batch, N], but they have %d and %d dimensions.",
                  inputs[0].nbDims, inputs[1].nbDims);
        return kRefused;
    }
    const nvinfer1::IDimensionExpr* rows = inputs[0].d[1];
    if (rows->isConstant() && rows->getConstantValue() < keep_) {
        log_error("k = %d is more than the %lld rows of visual_tokens.", keep_,
                  static_cast<long long>(rows->getConstantValue()));
        return kRefused;
    }
    const nvinfer1::IDimensionExpr* keep = builder.constant(keep_);
    outputs[0].nbDims = 3;
    outputs[0].d[0] = inputs[0].d[0];
    outputs[0].d[1] = keep;
    outputs[0].d[2] = inputs[0].d[2];
    outputs[1].nbDims = 2;
    outputs[1].d[0] = inputs[0].d[0];
    outputs[1].d[1] = keep;
    return 0;
}

bool MaxMinPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                             int32_t input_count, int32_t output_count) noexcept {
    if (input_count != kInputs || output_count != kOutputs || position < 0 || position >= kInputs + kOutputs) {
        return false;
    }
    const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
        return false;
    }
    switch (position) {
        case 0:
            return is_token_type(tensor.type);
        case 1:
            return tensor.type == DataType::kBOOL;
        case 2:
            return tensor.type == tensors[0].desc.type;
        default:
            return tensor.type == DataType::kINT64;
    }
}

int32_t MaxMinPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                      nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    if (!counts_fit(input_count, output_count)) {
        return kRefused;
    }
    // Both ends of the profile: what they accept, everything between accepts.
    divprune_problem problem{};
    const DataType type = inputs[0].desc.type;
    return to_problem(inputs[0].min, inputs[1].min, type, keep_, &problem) &&
                   to_problem(inputs[0].max, inputs[1].max, type, keep_, &problem)
               ? 0
               : kRefused;
}

size_t MaxMinPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t,
                                      nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
    divprune_problem problem{};
    uint64_t bytes = 0;
    if (to_problem(inputs[0].max, inputs[1].max, inputs[0].desc.type, keep_, &problem)) {
        if (same(inputs[0].min, inputs[0].max)) {
            divprune_workspace_bytes(&problem, &bytes);
        } else {
            divprune_workspace_bound(&problem, &bytes);
        }
    }
    return static_cast<size_t>(bytes);
}

int32_t MaxMinPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                                    nvinfer1::PluginTensorDesc const*, int32_t output_count) noexcept {
    divprune_problem problem{};
    return counts_fit(input_count, output_count) &&
                   to_problem(inputs[0].dims, inputs[1].dims, inputs[0].type, keep_, &problem)
               ? 0
               : kRefused;
}

int32_t MaxMinPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const*,
                              void const* const* input_data, void* const* output_data, void* workspace,
                              cudaStream_t stream) noexcept {
    divprune_problem problem{};
    if (!to_problem(inputs[0].dims, inputs[1].dims, inputs[0].type, keep_, &problem)) {
        return kRefused;
    }
    uint64_t bytes = 0;
    divprune_workspace_bytes(&problem, &bytes);
    const int status =
        divprune_max_min(&problem, input_data[0], static_cast<const uint8_t*>(input_data[1]), output_data[0],
                         static_cast<int64_t*>(output_data[1]), workspace, bytes, stream);
    if (status != DIVPRUNE_OK) {
        log_error("%s %s", divprune_status_message(status), divprune_cuda_message());
    }
    return status;
}

nvinfer1::IPluginV3* MaxMinPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* MaxMinPlugin::getFieldsToSerialize() noexcept { return &fields_; }

}  // namespace divprune
