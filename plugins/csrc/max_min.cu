// The entry points: check, plan, launch.

#include "max_min.h"

#include <cuda_runtime.h>

#include <atomic>

#include "distances.cuh"
#include "gather.cuh"
#include "hopper.h"
#include "launch.h"
#include "matrix_free.cuh"
#include "norms.cuh"
#include "pick.cuh"
#include "plan.h"

namespace divprune {
namespace {

constexpr int kMostDevices = 64;
constexpr uint32_t kHopperBit = 1u << 31;
// The first with clusters, and with launches that begin early.
constexpr int kHopper = 90;
// Whether the library has what is only for GPUs of sm_90, beside what is for them and for later ones.
#ifdef DIVPRUNE_HOPPER
constexpr bool kHasHopper = true;
#else
constexpr bool kHasHopper = false;
#endif

// What a plan depends on beside the sizes.
struct Device {
    int architecture;  // that the kernels are compiled for; the GPU may be newer
    int multiprocessors;
    bool hopper;  // the GPU is of sm_90, and the library has what is only for that
};

cudaError_t find_device(Device* device) {
    static std::atomic<uint32_t> known[kMostDevices];
    int number = 0;
    cudaError_t error = cudaGetDevice(&number);
    if (error != cudaSuccess) {
        return error;
    }
    const bool remembers = number >= 0 && number < kMostDevices;
    uint32_t facts = remembers ? known[number].load(std::memory_order_relaxed) : 0;
    if (facts == 0) {
        cudaFuncAttributes kernel{};
        int multiprocessors = 0;
        error = cudaFuncGetAttributes(&kernel, reinterpret_cast<const void*>(sort_kernel));
        if (error == cudaSuccess) {
            error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, number);
        }
        if (error != cudaSuccess) {
            return error;
        }
        const bool hopper = kHasHopper && kernel.binaryVersion == kHopper;
        facts = static_cast<uint32_t>(kernel.ptxVersion) << 16 | static_cast<uint32_t>(multiprocessors) |
                (hopper ? kHopperBit : 0);
        if (remembers) {
            known[number].store(facts, std::memory_order_relaxed);
        }
    }
    *device = {static_cast<int>(facts >> 16 & 0x7fff), static_cast<int>(facts & 0xffff), (facts & kHopperBit) != 0};
    return cudaSuccess;
}

// The workspace of one call.
struct Workspace {
    unsigned long long* best;
    uint32_t* state;
    float* norms;
    float* values;
    uint32_t* nearest;
    float* matrix;
};

Workspace locate(void* workspace, const Layout& layout) {
    unsigned char* start = static_cast<unsigned char*>(workspace);
    return {reinterpret_cast<unsigned long long*>(start + layout.best),
            reinterpret_cast<uint32_t*>(start + layout.state),
            reinterpret_cast<float*>(start + layout.norms),
            reinterpret_cast<float*>(start + layout.values),
            reinterpret_cast<uint32_t*>(start + layout.nearest),
            reinterpret_cast<float*>(start + layout.matrix)};
}

// One call with everything its launches share.
struct Call {
    divprune_problem problem;
    const void* tokens;
    const uint8_t* valid;
    const int64_t* seeds;
    int64_t* kept;
    void* kept_tokens;
    cudaStream_t stream;
    Layout layout;
    Workspace at;
    Plan plan{};
    bool overlaps = false;

    Call(const divprune_problem& problem, const void* tokens, const uint8_t* valid, const int64_t* seeds, int64_t* kept,
         void* kept_tokens, void* workspace, void* stream)
        : problem(problem),
          tokens(tokens),
          valid(valid),
          seeds(seeds),
          kept(kept),
          kept_tokens(kept_tokens),
          stream(static_cast<cudaStream_t>(stream)),
          layout(make_layout(problem)),
          at(locate(workspace, layout)) {}

    // Plans for the current device: a status.
    int fit() {
        Device device{};
        const cudaError_t error = find_device(&device);
        if (error != cudaSuccess) {
            return to_status(error);
        }
        if (!device.hopper && problem.product == DIVPRUNE_PRODUCT_WGMMA) {
            return DIVPRUNE_BAD_PRODUCT;
        }
        if (!device.hopper) {
            problem.product = DIVPRUNE_PRODUCT_MMA;
        }
        plan = make_plan(problem, tuning_of(device.architecture), device.multiprocessors);
        overlaps = device.architecture >= kHopper;
        return DIVPRUNE_OK;
    }

    unsigned batch() const { return static_cast<unsigned>(problem.batch); }
    dim3 per_row() const { return dim3(static_cast<unsigned>(problem.candidates), batch()); }

    // Candidates of the picks without a matrix, and the counters behind them.
    Reset reset() const {
        const int64_t between = static_cast<int64_t>(layout.state - layout.best) / 4;
        return {reinterpret_cast<uint32_t*>(at.best), between + 1 + problem.batch};
    }
};

template <class T>
cudaError_t norms(const Call& call) {
    NormArgs args{};
    args.tokens = call.tokens;
    args.norms = call.at.norms;
    args.reset = call.reset();
    args.n = call.problem.candidates;
    args.width = call.problem.width;
    return launch(norms_kernel<T>, {call.per_row(), kNormThreads}, call.stream, args);
}

template <class T, int kTile>
cudaError_t distance_tiles(const Call& call, const DistanceArgs& args) {
    const dim3 grid(static_cast<unsigned>(call.plan.tiles * call.plan.parts), call.batch());
    Shape shape{grid, Geometry<kTile>::kThreads};
    shape.shared = distance_shared_bytes<T, kTile>();
    shape.cluster = call.plan.parts;
    return launch(distances_kernel<T, kTile>, shape, call.stream, args);
}

template <class T>
cudaError_t distances(const Call& call, float* matrix, int stride, bool wants_nearest) {
    DistanceArgs args{};
    args.tokens = call.tokens;
    args.valid = call.valid;
    args.matrix = matrix;
    args.nearest = wants_nearest ? call.at.nearest : nullptr;
    args.norms = call.layout.stored ? nullptr : call.at.norms;
    args.reset = call.reset();
    args.n = call.problem.candidates;
    args.width = call.problem.width;
    args.stride = stride;
    args.nearest_stride = call.layout.stride;
    args.side = call.plan.side;
    args.parts = call.plan.parts;
    args.part = call.plan.part;
    if constexpr (!std::is_same<T, float>::value) {
#ifdef DIVPRUNE_HOPPER
        if (call.plan.product == DIVPRUNE_PRODUCT_WGMMA) {
            return wgmma_distances(call.problem, args, call.plan.tiles * call.plan.parts,
                                   call.plan.pair * call.plan.parts, call.stream);
        }
#endif
        if (call.plan.tile == kLargeTile) {
            return distance_tiles<T, kLargeTile>(call, args);
        }
    }
    return distance_tiles<T, kSmallTile>(call, args);
}

Nearest nearest_of(const Call& call, int slots) { return {call.at.nearest, slots, call.layout.stride}; }

GatherArgs gather_args(const Call& call) {
    const int bytes = call.problem.dtype == DIVPRUNE_FLOAT32 ? 4 : 2;
    GatherArgs args{};
    args.tokens = call.tokens;
    args.kept = call.kept;
    args.kept_tokens = call.kept_tokens;
    args.n = call.problem.candidates;
    args.keep = call.problem.keep;
    args.row_bytes = call.problem.width * bytes;
    return args;
}

// `slots`: from how many tiles a row's nearest comes.
template <Rule rule>
cudaError_t pick_stored(const Call& call, int slots) {
    PickArgs args{};
    args.matrix = call.at.matrix;
    args.valid = call.valid;
    args.nearest = nearest_of(call, slots);
    args.seeds = call.seeds;
    args.kept = call.kept;
    args.gather = gather_args(call);
    args.begun = call.at.state;
    args.made = call.at.state + 1;
    args.n = call.problem.candidates;
    args.stride = call.layout.stride;
    args.keep = call.problem.keep;
    args.items = call.problem.batch;
    args.workers = call.plan.workers;
    const int64_t workers = call.kept_tokens == nullptr ? 0 : static_cast<int64_t>(args.items) * args.workers;
    const int64_t clusters = args.items + (workers + call.plan.shards - 1) / call.plan.shards;
    Shape shape{dim3(static_cast<unsigned>(clusters * call.plan.shards)), call.plan.threads};
    shape.cluster = call.plan.shards;
    shape.overlaps = call.overlaps;
    switch (call.plan.vectors) {
        case 1:
            return launch(pick_kernel<rule, 1>, shape, call.stream, args);
        case 2:
            return launch(pick_kernel<rule, 2>, shape, call.stream, args);
        case 4:
            return launch(pick_kernel<rule, 4>, shape, call.stream, args);
        default:
            return launch(pick_kernel<rule, 8>, shape, call.stream, args);
    }
}

template <class T, Rule rule>
cudaError_t pick_matrix_free(const Call& call) {
    StepArgs args{};
    args.tokens = call.tokens;
    args.norms = call.at.norms;
    args.valid = call.valid;
    args.nearest = nearest_of(call, call.plan.side);
    args.seeds = call.seeds;
    args.values = call.at.values;
    args.best = call.at.best;
    args.kept = call.kept;
    args.n = call.problem.candidates;
    args.width = call.problem.width;
    args.keep = call.problem.keep;
    const unsigned n = static_cast<unsigned>(args.n);
    constexpr unsigned kWarps = kStepThreads / kWarp;
    const dim3 threads_grid((n + kStepThreads - 1) / kStepThreads, call.batch());
    const dim3 warps_grid((n + kWarps - 1) / kWarps, call.batch());
    cudaError_t error = launch(first_kernel<rule>, {threads_grid, kStepThreads}, call.stream, args);
    for (args.step = 1; args.step < args.keep && error == cudaSuccess; ++args.step) {
        error = launch(step_kernel<T, rule>, {warps_grid, kStepThreads}, call.stream, args);
    }
    if (error == cudaSuccess) {
        error = launch(sort_kernel, {dim3(call.batch()), kSortThreads}, call.stream, args);
    }
    if (error == cudaSuccess && call.kept_tokens != nullptr) {
        const dim3 grid(static_cast<unsigned>(args.keep), call.batch());
        error = launch(gather_kernel, {grid, kGatherThreads}, call.stream, gather_args(call));
    }
    return error;
}

template <class T, Rule rule>
cudaError_t select(const Call& call) {
    cudaError_t error = cudaSuccess;
    // The sum rule starts from a seed, so without a stored matrix it needs no pass over all pairs.
    const bool wants_nearest = rule == Rule::kMaxMin;
    if (call.layout.stored || wants_nearest) {
        error = distances<T>(call, call.layout.stored ? call.at.matrix : nullptr, call.layout.stride, wants_nearest);
    } else {
        error = norms<T>(call);
    }
    if (error != cudaSuccess) {
        return error;
    }
    return call.layout.stored ? pick_stored<rule>(call, call.plan.side) : pick_matrix_free<T, rule>(call);
}

// What every entry point checks before it touches the device.
int check_call(const divprune_problem* problem, const void* input, const void* output, const void* workspace,
               uint64_t workspace_bytes, bool picks_only) {
    if (problem == nullptr || input == nullptr || output == nullptr || workspace == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const int status = check_problem(*problem, picks_only);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    if ((!picks_only && misaligned(input)) || misaligned(workspace)) {
        return DIVPRUNE_MISALIGNED;
    }
    return workspace_bytes < make_layout(*problem).bytes ? DIVPRUNE_WORKSPACE_TOO_SMALL : DIVPRUNE_OK;
}

template <Rule rule>
int run(const divprune_problem* problem, const void* tokens, const uint8_t* valid, const int64_t* seeds,
        void* kept_tokens, int64_t* kept_indices, void* workspace, uint64_t workspace_bytes, void* stream) {
    const int status = check_call(problem, tokens, kept_indices, workspace, workspace_bytes, false);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    if (misaligned(kept_tokens)) {
        return DIVPRUNE_MISALIGNED;
    }
    Call call(*problem, tokens, valid, seeds, kept_indices, kept_tokens, workspace, stream);
    const int fitted = call.fit();
    if (fitted != DIVPRUNE_OK) {
        return fitted;
    }
    switch (problem->dtype) {
        case DIVPRUNE_FLOAT32:
            return to_status(select<float, rule>(call));
        case DIVPRUNE_FLOAT16:
            return to_status(select<__half, rule>(call));
        default:
            return to_status(select<__nv_bfloat16, rule>(call));
    }
}

template <class T>
cudaError_t all_distances(const Call& call, float* matrix) {
    return distances<T>(call, matrix, call.problem.candidates, false);
}

}  // namespace
}  // namespace divprune

using namespace divprune;

const char* divprune_cuda_message(void) { return cuda_message; }

int divprune_workspace_bytes(const divprune_problem* problem, uint64_t* bytes) {
    if (problem == nullptr || bytes == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const int status = check_problem(*problem);
    if (status == DIVPRUNE_OK) {
        *bytes = make_layout(*problem).bytes;
    }
    return status;
}

int divprune_workspace_bound(const divprune_problem* problem, uint64_t* bytes) {
    if (problem == nullptr || bytes == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const int status = check_problem(*problem);
    if (status == DIVPRUNE_OK) {
        *bytes = workspace_bound(*problem);
    }
    return status;
}

int divprune_launch_count(const divprune_problem* problem, int32_t* launches) {
    if (problem == nullptr || launches == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const int status = check_problem(*problem);
    if (status == DIVPRUNE_OK) {
        *launches = make_layout(*problem).launches;
    }
    return status;
}

int divprune_plan(const divprune_problem* problem, int32_t architecture, int32_t multiprocessors,
                  divprune_spread* spread) {
    if (problem == nullptr || spread == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    const Tuning& tuning = tuning_of(architecture);
    const int status = check_problem(*problem);
    if (status == DIVPRUNE_OK && problem->product == DIVPRUNE_PRODUCT_WGMMA && !has_wgmma(*problem, tuning)) {
        return DIVPRUNE_BAD_PRODUCT;
    }
    if (status == DIVPRUNE_OK) {
        const Plan plan = make_plan(*problem, tuning, multiprocessors < 1 ? 1 : multiprocessors);
        *spread = {plan.tile, plan.columns, plan.tiles, plan.parts, plan.shards, plan.threads, plan.workers,
                   plan.product, static_cast<int64_t>(plan.cycles)};
    }
    return status;
}

int divprune_max_min(const divprune_problem* problem, const void* tokens, const uint8_t* valid, void* kept_tokens,
                     int64_t* kept_indices, void* workspace, uint64_t workspace_bytes, void* stream) {
    return run<Rule::kMaxMin>(problem, tokens, valid, nullptr, kept_tokens, kept_indices, workspace, workspace_bytes,
                              stream);
}

int divprune_min_sum(const divprune_problem* problem, const void* tokens, const uint8_t* valid, const int64_t* seeds,
                     void* kept_tokens, int64_t* kept_indices, void* workspace, uint64_t workspace_bytes,
                     void* stream) {
    if (seeds == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    return run<Rule::kMinSum>(problem, tokens, valid, seeds, kept_tokens, kept_indices, workspace, workspace_bytes,
                              stream);
}

int divprune_distances(const divprune_problem* problem, const void* tokens, float* matrix, void* workspace,
                       uint64_t workspace_bytes, void* stream) {
    const int status = check_call(problem, tokens, matrix, workspace, workspace_bytes, false);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    Call call(*problem, tokens, nullptr, nullptr, nullptr, nullptr, workspace, stream);
    const int fitted = call.fit();
    if (fitted != DIVPRUNE_OK) {
        return fitted;
    }
    switch (problem->dtype) {
        case DIVPRUNE_FLOAT32:
            return to_status(all_distances<float>(call, matrix));
        case DIVPRUNE_FLOAT16:
            return to_status(all_distances<__half>(call, matrix));
        default:
            return to_status(all_distances<__nv_bfloat16>(call, matrix));
    }
}

int divprune_pick(const divprune_problem* problem, const float* matrix, const uint8_t* valid, const int64_t* seeds,
                  int64_t* kept_indices, void* workspace, uint64_t workspace_bytes, void* stream) {
    if (problem == nullptr) {
        return DIVPRUNE_NULL_POINTER;
    }
    // The picks need a stored matrix, whatever its size.
    divprune_problem stored = *problem;
    stored.width = 8;
    stored.dtype = DIVPRUNE_FLOAT32;
    stored.product = DIVPRUNE_PRODUCT_TUNED;
    stored.matrix_budget = ~0ull;
    const int status = check_call(&stored, matrix, kept_indices, workspace, workspace_bytes, true);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    Call call(stored, nullptr, valid, seeds, kept_indices, nullptr, workspace, stream);
    const int fitted = call.fit();
    if (fitted != DIVPRUNE_OK) {
        return fitted;
    }
    const AdoptArgs adopt{matrix,       valid,        call.at.matrix,    call.at.nearest,
                          call.reset(), stored.candidates, call.layout.stride};
    const cudaError_t error = launch(adopt_kernel, {call.per_row(), kAdoptThreads}, call.stream, adopt);
    if (error != cudaSuccess) {
        return to_status(error);
    }
    return to_status(seeds == nullptr ? pick_stored<Rule::kMaxMin>(call, 1) : pick_stored<Rule::kMinSum>(call, 1));
}
