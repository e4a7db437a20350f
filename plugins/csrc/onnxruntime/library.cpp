// What ONNX Runtime calls when the library is registered with the options of a session.

#include <initializer_list>

#include "operator.h"

namespace {

using namespace divprune;

constexpr const char* kDomain = "divprune_edge";
constexpr int kDtypes[] = {DIVPRUNE_FLOAT32, DIVPRUNE_FLOAT16, DIVPRUNE_BFLOAT16};

OrtStatus* add(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider, Compute compute) {
    for (const Rule rule : {Rule::kMaxMin, Rule::kMinSum}) {
        for (const int dtype : kDtypes) {
            // Never freed: sessions use them for as long as the process has any.
            DIVPRUNE_RETURN_IF_FAILED(api.CustomOpDomain_Add(domain, new Operator(rule, dtype, provider, compute)));
        }
    }
    return nullptr;
}

// Once for the process, however many sessions there are.
OrtStatus* make_domain(const OrtApi& api, OrtCustomOpDomain** domain) {
    DIVPRUNE_RETURN_IF_FAILED(api.CreateCustomOpDomain(kDomain, domain));
    DIVPRUNE_RETURN_IF_FAILED(add(api, *domain, "CPUExecutionProvider", compute_cpu));
#ifdef DIVPRUNE_CUDA
    DIVPRUNE_RETURN_IF_FAILED(add(api, *domain, "CUDAExecutionProvider", compute_cuda));
#endif
    return nullptr;
}

}  // namespace

extern "C" DIVPRUNE_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(kApiVersion);
    if (api == nullptr) {
        return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "ONNX Runtime 1.18 or newer is needed.");
    }
    static OrtCustomOpDomain* domain = nullptr;
    static OrtStatus* const failed = make_domain(*api, &domain);
    if (failed != nullptr) {
        return api->CreateStatus(api->GetErrorCode(failed), api->GetErrorMessage(failed));
    }
    return api->AddCustomOpDomain(options, domain);
}
