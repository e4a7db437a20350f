// The selection on a GPU: the kernels of ../max_min.h on ONNX Runtime's stream.

#include <cstdio>

#include "operator.h"
#include "seeds.h"

namespace divprune {
namespace {

OrtStatus* to_ort_status(const OrtApi& api, int status) {
    if (status == DIVPRUNE_OK) {
        return nullptr;
    }
    char message[240];
    std::snprintf(message, sizeof message, "%s %s", divprune_status_message(status),
                  status == DIVPRUNE_CUDA_ERROR ? divprune_cuda_message() : "");
    return api.CreateStatus(status == DIVPRUNE_CUDA_ERROR ? ORT_EP_FAIL : ORT_INVALID_ARGUMENT, message);
}

}  // namespace

OrtStatus* compute_cuda(const Run& run) {
    const OrtApi& api = *run.api;
    void* stream = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(api.KernelContext_GetGPUComputeStream(run.context, &stream));
    uint64_t bytes = 0;
    DIVPRUNE_RETURN_IF_FAILED(to_ort_status(api, divprune_workspace_bytes(&run.problem, &bytes)));
    const uint64_t seeds_at = bytes;  // a workspace ends on 256 bytes
    Scratch scratch(run);
    void* workspace = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(
        scratch.allocate(seeds_at + sizeof(int64_t) * static_cast<uint64_t>(run.problem.batch), true, &workspace));
    if (run.rule == Rule::kMaxMin) {
        return to_ort_status(api, divprune_max_min(&run.problem, run.tokens, run.valid, run.kept_tokens,
                                                   run.kept_indices, workspace, bytes, stream));
    }
    auto* seeds = reinterpret_cast<int64_t*>(static_cast<unsigned char*>(workspace) + seeds_at);
    DIVPRUNE_RETURN_IF_FAILED(to_ort_status(api, find_seeds(run.problem, run.attention, run.valid, seeds, stream)));
    return to_ort_status(api, divprune_min_sum(&run.problem, run.tokens, run.valid, seeds, run.kept_tokens,
                                               run.kept_indices, workspace, bytes, stream));
}

}  // namespace divprune
