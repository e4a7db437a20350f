// The operators' way to the GPU's kernels, over emulated kernels, on ONNX Runtime's CPU: what it has there for a GPU alone,
// a stream and scratch that belongs to it, is put in place here.

#include <cstring>
#include <initializer_list>

#include "onnxruntime/operator.h"

using namespace divprune;

namespace {

OrtApi with_stream;

OrtStatus* ORT_API_CALL no_stream(const OrtKernelContext*, void** stream) noexcept {
    *stream = nullptr;
    return nullptr;
}

OrtStatus* ORT_API_CALL scratch(const OrtKernelContext* context, const OrtMemoryInfo* memory, size_t bytes,
                                void** pointer) noexcept {
    OrtAllocator* allocator = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(with_stream.KernelContext_GetAllocator(context, memory, &allocator));
    *pointer = allocator->Alloc(allocator, bytes);
    std::memset(*pointer, 0xff, bytes);  // nothing may rely on what is in it
    with_stream.ReleaseAllocator(allocator);
    return nullptr;
}

OrtStatus* compute(const Run& run) {
    Run other = run;
    other.api = &with_stream;
    return compute_cuda(other);
}

}  // namespace

extern "C" DIVPRUNE_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(kApiVersion);
    // Of an older version's table no more than that may be read.
    std::memcpy(static_cast<void*>(&with_stream), api, offsetof(OrtApi, KernelInfoGetAllocator));
    with_stream.KernelContext_GetGPUComputeStream = no_stream;
    with_stream.KernelContext_GetScratchBuffer = scratch;
    OrtCustomOpDomain* domain = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(api->CreateCustomOpDomain("divprune_edge", &domain));
    for (int rule = 0; rule < 2; ++rule) {
        for (const int dtype : {DIVPRUNE_FLOAT32, DIVPRUNE_FLOAT16, DIVPRUNE_BFLOAT16}) {
            auto* made = new Operator(static_cast<Rule>(rule), dtype, "CPUExecutionProvider", compute);
            DIVPRUNE_RETURN_IF_FAILED(api->CustomOpDomain_Add(domain, made));
        }
    }
    return api->AddCustomOpDomain(options, domain);
}
