// DivPrune as a visual pruner of NVIDIA's TensorRT Edge-LLM. Linked into a program together with Edge-LLM's runtime, it
// is there under the name "divprune".
//
// Edge-LLM's base class finds the spans, says how many tokens of each stay, and compacts embeddings, deepstack features
// and rotary rows; what it asks for is the selection.

#include "runtime/preprocess/visualTokenPruner.h"

#include <algorithm>
#include <memory>

#include "../plan.h"
#include "spans.h"

namespace divprune {
namespace {

namespace rt = trt_edgellm::rt;
using nvinfer1::DataType;

constexpr char kName[] = "divprune";

void check_cuda(cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("divprune: ") + cudaGetErrorString(error));
    }
}

class DivprunePruner final : public rt::VisualTokenPruner {
public:
    DivprunePruner(rt::VisualPrunerConfig const& config, rt::LLMEngineConfig const& engine)
        : VisualTokenPruner(config, engine), width_(engine.hiddenSize) {
        if (divprune_abi_version() != DIVPRUNE_ABI_VERSION) {
            throw std::runtime_error("divprune: the plugin library belongs to another version; build both again.");
        }
        const int64_t rows = engine.maxSupportedInputLength;
        const uint64_t bytes = span_workspace_bytes(static_cast<int32_t>(std::min<int64_t>(rows, kMaxCandidates)), width_);
        workspace_ = rt::Tensor({static_cast<int64_t>(bytes)}, rt::DeviceType::kGPU, DataType::kINT8, "divprune");
        // At worst every token is kept, in spans of one that take the room of two.
        kept_ = rt::Tensor({2 * rows}, rt::DeviceType::kGPU, DataType::kINT64, "divprune");
        kept_host_ = rt::Tensor({2 * rows}, rt::DeviceType::kCPU, DataType::kINT64, "divprune");
    }

    char const* name() const noexcept override { return kName; }

protected:
    int32_t prune(rt::PruneRequest const& request, rt::PipelineIO& io, cudaStream_t stream) override {
        if (request.embeds->getDataType() != DataType::kHALF) {
            throw std::runtime_error("divprune: the prompt's embeddings are not float16.");
        }
        spans_.clear();
        for (rt::ImageSpan const& span : *request.imageSpans) {
            spans_.push_back({span.begin, span.end, span.targetTokens});
        }
        select_spans(request.embeds->rawPointer(), width_, spans_, kept_.dataPointer<int64_t>(),
                     workspace_.rawPointer(), static_cast<uint64_t>(workspace_.getMemoryCapacity()), stream);
        check_cuda(cudaMemcpyAsync(kept_host_.rawPointer(), kept_.rawPointer(), room(spans_) * sizeof(int64_t),
                                   cudaMemcpyDeviceToHost, stream));
        check_cuda(cudaStreamSynchronize(stream));
        to_positions(spans_, kept_host_.dataPointer<int64_t>(), positions_);
        return compactToKeepList(io, positions_, request, stream);
    }

private:
    int32_t width_;
    rt::Tensor workspace_;
    rt::Tensor kept_;
    rt::Tensor kept_host_;
    std::vector<Span> spans_;
    std::vector<int32_t> positions_;
};

[[maybe_unused]] const bool kRegistered = [] {
    rt::registerVisualPruner(kName, [](rt::VisualPrunerConfig const& config, rt::LLMEngineConfig const& engine) {
        return std::unique_ptr<rt::VisualTokenPruner>(std::make_unique<DivprunePruner>(config, engine));
    });
    return true;
}();

}  // namespace
}  // namespace divprune
