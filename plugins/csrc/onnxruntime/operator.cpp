#include "operator.h"

#include <cstdio>
#include <new>

namespace divprune {
namespace {

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

constexpr size_t kTokens = 0, kValid = 1, kAttention = 2;

ONNXTensorElementDataType element(int dtype) {
    return dtype == DIVPRUNE_FLOAT32   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
           : dtype == DIVPRUNE_FLOAT16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                       : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

const char* name_of(Rule rule) { return rule == Rule::kMaxMin ? "MaxMinDiversity" : "MinSumSimilarity"; }

size_t input_count(Rule rule) { return rule == Rule::kMaxMin ? 2 : 3; }

// A kernel of ONNX Runtime's and the operator that computes it.
struct Node {
    Kernel kernel;
    Compute compute;
};

OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** made) {
    int64_t keep = 0;
    DIVPRUNE_RETURN_IF_FAILED(api->KernelInfoGetAttribute_int64(info, "k", &keep));
    *made = new (std::nothrow) Node{{api, self(op).rule, self(op).dtype, keep}, self(op).compute};
    return *made == nullptr ? api->CreateStatus(ORT_FAIL, "No memory is left.") : nullptr;
}

constexpr size_t kMostDims = 3;

struct Tensor {
    const OrtValue* value;
    const void* data;
    int64_t dims[kMostDims];
};

OrtStatus* read_input(const Kernel& kernel, const OrtKernelContext* context, size_t index, size_t rank, Tensor* tensor) {
    const OrtApi& api = *kernel.api;
    DIVPRUNE_RETURN_IF_FAILED(api.KernelContext_GetInput(context, index, &tensor->value));
    OrtTensorTypeAndShapeInfo* shape = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(api.GetTensorTypeAndShape(tensor->value, &shape));
    size_t found = 0;
    OrtStatus* status = api.GetDimensionsCount(shape, &found);
    if (status == nullptr && found == rank) {
        status = api.GetDimensions(shape, tensor->dims, rank);
    }
    api.ReleaseTensorTypeAndShapeInfo(shape);
    DIVPRUNE_RETURN_IF_FAILED(status);
    if (found != rank) {
        char message[160];
        std::snprintf(message, sizeof message, "%s: input %zu has %zu dimensions, expected %zu.", name_of(kernel.rule),
                      index, found, rank);
        return api.CreateStatus(ORT_INVALID_ARGUMENT, message);
    }
    void* data = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(api.GetTensorMutableData(const_cast<OrtValue*>(tensor->value), &data));
    tensor->data = data;
    return nullptr;
}

OrtStatus* write_output(const OrtApi& api, OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                        void** data) {
    OrtValue* value = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(api.KernelContext_GetOutput(context, index, dims, rank, &value));
    return api.GetTensorMutableData(value, data);
}

bool fits(int64_t size) { return size >= 1 && size <= INT32_MAX; }

OrtStatus* compute(void* made, OrtKernelContext* context) {
    const Kernel& kernel = static_cast<const Node*>(made)->kernel;
    const OrtApi& api = *kernel.api;
    Tensor tokens{}, valid{}, attention{};
    DIVPRUNE_RETURN_IF_FAILED(read_input(kernel, context, kTokens, 3, &tokens));
    DIVPRUNE_RETURN_IF_FAILED(read_input(kernel, context, kValid, 2, &valid));
    const bool seeded = kernel.rule == Rule::kMinSum;
    if (seeded) {
        DIVPRUNE_RETURN_IF_FAILED(read_input(kernel, context, kAttention, 2, &attention));
    }
    const int64_t batch = tokens.dims[0], rows = tokens.dims[1], width = tokens.dims[2];
    const auto same = [&](const Tensor& other) { return other.dims[0] == batch && other.dims[1] == rows; };
    if (!fits(batch) || !fits(rows) || !fits(width) || kernel.keep < 1 || kernel.keep > rows || !same(valid) ||
        (seeded && !same(attention))) {
        char message[240];
        std::snprintf(message, sizeof message,
                      "%s: visual_tokens [%lld, %lld, %lld], valid [%lld, %lld] and k = %lld do not fit each other.",
                      name_of(kernel.rule), static_cast<long long>(batch), static_cast<long long>(rows),
                      static_cast<long long>(width), static_cast<long long>(valid.dims[0]),
                      static_cast<long long>(valid.dims[1]), static_cast<long long>(kernel.keep));
        return api.CreateStatus(ORT_INVALID_ARGUMENT, message);
    }
    Run run{};
    run.api = &api;
    run.context = context;
    run.rule = kernel.rule;
    run.problem.batch = static_cast<int32_t>(batch);
    run.problem.candidates = static_cast<int32_t>(rows);
    run.problem.width = static_cast<int32_t>(width);
    run.problem.keep = static_cast<int32_t>(kernel.keep);
    run.problem.dtype = kernel.dtype;
    run.tokens = tokens.data;
    run.valid = static_cast<const uint8_t*>(valid.data);
    run.attention = static_cast<const float*>(attention.data);
    DIVPRUNE_RETURN_IF_FAILED(api.GetTensorMemoryInfo(tokens.value, &run.memory));
    const int64_t dims[] = {batch, kernel.keep, width};
    void* indices = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(write_output(api, context, 0, dims, 3, &run.kept_tokens));
    DIVPRUNE_RETURN_IF_FAILED(write_output(api, context, 1, dims, 2, &indices));
    run.kept_indices = static_cast<int64_t*>(indices);
    return static_cast<const Node*>(made)->compute(run);
}

}  // namespace

Operator::Operator(Rule rule, int dtype, const char* provider, Compute compute_with)
    : OrtCustomOp{}, rule(rule), dtype(dtype), provider(provider), compute(compute_with) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp* op) { return name_of(self(op).rule); };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).provider; };
    GetInputTypeCount = [](const OrtCustomOp* op) { return input_count(self(op).rule); };
    GetInputType = [](const OrtCustomOp* op, size_t index) {
        return index == kTokens  ? element(self(op).dtype)
               : index == kValid ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL
                                 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
    GetOutputType = [](const OrtCustomOp* op, size_t index) {
        return index == 0 ? element(self(op).dtype) : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
    CreateKernelV2 = create;
    KernelComputeV2 = divprune::compute;
    KernelDestroy = [](void* made) { delete static_cast<Node*>(made); };
}

Scratch::~Scratch() {
    if (pointer_ != nullptr) {
        allocator_->Free(allocator_, pointer_);
    }
    if (allocator_ != nullptr) {
        run_.api->ReleaseAllocator(allocator_);
    }
}

OrtStatus* Scratch::allocate(uint64_t bytes, bool on_stream, void** pointer) {
    const OrtApi& api = *run_.api;
    DIVPRUNE_RETURN_IF_FAILED(api.KernelContext_GetAllocator(run_.context, run_.memory, &allocator_));
    if (on_stream) {
        DIVPRUNE_RETURN_IF_FAILED(api.KernelContext_GetScratchBuffer(run_.context, run_.memory, bytes, &pointer_));
    } else {
        pointer_ = allocator_->Alloc(allocator_, bytes);
    }
    *pointer = pointer_;
    return pointer_ == nullptr ? api.CreateStatus(ORT_FAIL, "No memory is left for a selection.") : nullptr;
}

}  // namespace divprune
