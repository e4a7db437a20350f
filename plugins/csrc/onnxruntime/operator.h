// One of the selector's operators: a rule, a type of tokens, a device. ONNX Runtime is known by its C interface alone, of
// the oldest version that has what is called here.

#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>

#include "../max_min.h"
#include "../selection.h"

namespace divprune {

constexpr uint32_t kApiVersion = 18;
static_assert(ORT_API_VERSION >= kApiVersion, "headers of ONNX Runtime 1.18 or newer");

// What one node knows: its K.
struct Kernel {
    const OrtApi* api;
    Rule rule;
    int dtype;
    int64_t keep;
};

// One run of a node: what it reads and where it writes. `attention` float32 [B, N] is NULL but for the sum rule.
struct Run {
    const OrtApi* api;
    OrtKernelContext* context;
    const OrtMemoryInfo* memory;  // of the tokens
    Rule rule;
    divprune_problem problem;
    const void* tokens;
    const uint8_t* valid;
    const float* attention;
    void* kept_tokens;
    int64_t* kept_indices;
};

// NULL for success.
using Compute = OrtStatus* (*)(const Run& run);
OrtStatus* compute_cpu(const Run& run);
OrtStatus* compute_cuda(const Run& run);

struct Operator : OrtCustomOp {
    Operator(Rule rule, int dtype, const char* provider, Compute compute);

    Rule rule;
    int dtype;
    const char* provider;
    Compute compute;
};

// Scratch of a run, from ONNX Runtime's allocator for the tokens' device.
class Scratch {
   public:
    explicit Scratch(const Run& run) : run_(run) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();

    // On a device what is freed goes to later work on the same stream only.
    OrtStatus* allocate(uint64_t bytes, bool on_stream, void** pointer);

   private:
    const Run& run_;
    OrtAllocator* allocator_ = nullptr;
    void* pointer_ = nullptr;
};

}  // namespace divprune

// Returns the status of a call that failed.
#define DIVPRUNE_RETURN_IF_FAILED(call)     \
    if (OrtStatus* status_ = (call)) {      \
        return status_;                     \
    }
