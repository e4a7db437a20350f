// Edge-LLM's own registry and base class, for Python: device memory is host memory, kernels run through the emulator,
// the one kernel of Edge-LLM that a compaction needs is written here.

#include "kernels/dart/dartGatherKernels.h"
#include "runtime/preprocess/dartPruner.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace trt_edgellm {

namespace kernel {
void gatherRows(void* to, void const* from, int32_t const* rows, int64_t count, int64_t bytes, cudaStream_t) {
    for (int64_t i = 0; i < count; ++i) {
        std::memcpy(static_cast<char*>(to) + i * bytes, static_cast<char const*>(from) + rows[i] * bytes, bytes);
    }
}
}  // namespace kernel

namespace rt {
// The registry names it, no test makes one.
DartPruner::DartPruner(VisualPrunerConfig const& config, LLMEngineConfig const& engine)
    : VisualTokenPruner(config, engine) {
    std::abort();
}
int32_t DartPruner::prune(PruneRequest const&, PipelineIO&, cudaStream_t) { std::abort(); }
}  // namespace rt

}  // namespace trt_edgellm

extern "C" {
cudaError_t cudaMalloc(void** memory, size_t bytes) {
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
char const* cudaGetErrorString(cudaError_t) { return "an error"; }
}

namespace rt = trt_edgellm::rt;
using nvinfer1::DataType;

constexpr int32_t kImageToken = 7;
constexpr int32_t kDeepstack = 2;

// The rotary rows of a prompt; Edge-LLM 0.11 has them under another name than 0.10.
template <class IO>
static auto rotary(IO& io, int) -> decltype((io.mropeActiveCosSin)) {
    return io.mropeActiveCosSin;
}
template <class IO>
static auto rotary(IO& io, long) -> decltype((io.mropeCosSin)) {
    return io.mropeCosSin;
}

static rt::Tensor plane(int64_t rows, int64_t width, DataType type, void const* values) {
    rt::Tensor tensor({1, rows, width}, rt::DeviceType::kGPU, type, "test");
    std::memcpy(tensor.rawPointer(), values, static_cast<size_t>(tensor.getMemoryCapacity()));
    return tensor;
}

// Prunes a prompt of float16 embeddings [length, width] with the pruner of this name. Afterwards `embeddings` is
// compacted and `positions` is what became of rotary rows that say their own position. Returns the length of the
// prompt; -1 after `error`; -2 if the deepstack features do not go with the embeddings.
extern "C" __attribute__((visibility("default"))) int prune_prompt(
    char const* algorithm, float ratio, int32_t const* ids, int32_t length, int32_t width, int32_t capacity,
    void* embeddings, float* positions, char* error) {
    try {
        rt::VisualPrunerConfig config;
        config.enabled = true;
        config.algorithm = algorithm;
        config.reductionRatio = ratio;
        rt::LLMEngineConfig engine;
        engine.imageTokenId = kImageToken;
        engine.hiddenSize = width;
        engine.rotaryDim = 1;
        engine.maxKVCacheCapacity = capacity;
        engine.maxSupportedInputLength = length;
        engine.maxSupportedBatchSize = 1;
        auto const pruner = rt::createVisualTokenPruner(config, engine);

        rt::PipelineIO io;
        io.inputsEmbeds = plane(length, width, DataType::kHALF, embeddings);
        for (int32_t i = 0; i < kDeepstack; ++i) {
            io.deepstackEmbeds.push_back(plane(length, width, DataType::kHALF, embeddings));
        }
        rotary(io, 0) = plane(capacity, 1, DataType::kFLOAT, positions);
        int32_t const pruned = pruner->pruneForPrefill({ids, ids + length}, io, length, nullptr);
        size_t const bytes = static_cast<size_t>(pruned) * width * 2;
        std::memcpy(embeddings, io.inputsEmbeds.rawPointer(), bytes);
        std::memcpy(positions, rotary(io, 0).rawPointer(), static_cast<size_t>(capacity) * sizeof(float));
        bool const together = std::all_of(io.deepstackEmbeds.begin(), io.deepstackEmbeds.end(), [&](rt::Tensor& tensor) {
            return tensor.getShape()[1] == pruned && std::memcmp(tensor.rawPointer(), embeddings, bytes) == 0;
        });
        return together ? pruned : -2;
    } catch (std::exception const& problem) {
        error[std::string(problem.what()).copy(error, 255)] = '\0';
        return -1;
    }
}
