// The entry points: check, plan, launch.

#include "max_min.h"

#include <cuda_runtime.h>

#include "distances.cuh"
#include "gather.cuh"
#include "launch.h"
#include "matrix_free.cuh"
#include "norms.cuh"
#include "pick.cuh"
#include "plan.h"

namespace divprune {
namespace {

// The workspace of one call.
struct Workspace {
    float* norms;
    uint32_t* nearest;
    uint32_t* arrivals;
    float* partials;
    float* matrix;
    float* values;
    unsigned long long* best;
};

Workspace locate(void* workspace, const Layout& layout) {
    unsigned char* start = static_cast<unsigned char*>(workspace);
    return {reinterpret_cast<float*>(start + layout.norms),
            reinterpret_cast<uint32_t*>(start + layout.nearest),
            reinterpret_cast<uint32_t*>(start + layout.arrivals),
            reinterpret_cast<float*>(start + layout.partials),
            reinterpret_cast<float*>(start + layout.matrix),
            reinterpret_cast<float*>(start + layout.values),
            reinterpret_cast<unsigned long long*>(start + layout.best)};
}

// One call with everything its launches share.
struct Call {
    const divprune_problem& problem;
    const Plan& plan;
    const void* tokens;
    const uint8_t* valid;
    const int64_t* seeds;
    int64_t* kept;
    Workspace at;
    cudaStream_t stream;

    unsigned batch() const { return static_cast<unsigned>(problem.batch); }
    dim3 per_row() const { return dim3(static_cast<unsigned>(problem.candidates), batch()); }
};

template <class T>
cudaError_t norms(const Call& call) {
    const int64_t items = call.problem.batch;
    NormArgs args{};
    args.tokens = call.tokens;
    args.norms = call.at.norms;
    args.nearest = call.at.nearest;
    args.arrivals = call.at.arrivals;
    args.arrivals_count = call.plan.splits > 1 ? items * call.plan.tiles : 0;
    args.best = call.at.best;
    args.best_count = call.plan.stored ? 0 : items * call.problem.keep;
    args.n = call.problem.candidates;
    args.width = call.problem.width;
    return launch(norms_kernel<T>, call.per_row(), kNormThreads, 0, call.stream, args);
}

template <class T, int kTile>
cudaError_t distance_tiles(const Call& call, const DistanceArgs& args) {
    const dim3 grid(static_cast<unsigned>(args.tiles * args.splits), call.batch());
    return launch(distances_kernel<T, kTile>, grid, Geometry<kTile>::kThreads, distance_shared_bytes<T, kTile>(),
                  call.stream, args);
}

template <class T>
cudaError_t distances(const Call& call, float* matrix, int stride, uint32_t* nearest) {
    DistanceArgs args{};
    args.tokens = call.tokens;
    args.norms = call.at.norms;
    args.valid = call.valid;
    args.matrix = matrix;
    args.nearest = nearest;
    args.partials = call.at.partials;
    args.arrivals = call.at.arrivals;
    args.n = call.problem.candidates;
    args.width = call.problem.width;
    args.stride = stride;
    args.tiles = call.plan.tiles;
    args.splits = call.plan.splits;
    args.split = call.plan.split;
    return call.plan.tile == 64 ? distance_tiles<T, 64>(call, args) : distance_tiles<T, 128>(call, args);
}

template <Rule rule>
cudaError_t pick_stored(const Call& call) {
    PickArgs args{};
    args.matrix = call.at.matrix;
    args.valid = call.valid;
    args.nearest = call.at.nearest;
    args.seeds = call.seeds;
    args.kept = call.kept;
    args.n = call.problem.candidates;
    args.stride = call.plan.stride;
    args.keep = call.problem.keep;
    const dim3 grid(call.batch());
    const int threads = pick_threads(args.n);
    switch (pick_vectors(args.n)) {
        case 1:
            return launch(pick_kernel<rule, 1>, grid, threads, 0, call.stream, args);
        case 2:
            return launch(pick_kernel<rule, 2>, grid, threads, 0, call.stream, args);
        case 4:
            return launch(pick_kernel<rule, 4>, grid, threads, 0, call.stream, args);
        default:
            return launch(pick_kernel<rule, 8>, grid, threads, 0, call.stream, args);
    }
}

template <class T, Rule rule>
cudaError_t pick_matrix_free(const Call& call) {
    StepArgs args{};
    args.tokens = call.tokens;
    args.norms = call.at.norms;
    args.valid = call.valid;
    args.nearest = call.at.nearest;
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
    cudaError_t error = launch(first_kernel<rule>, threads_grid, kStepThreads, 0, call.stream, args);
    for (args.step = 1; args.step < args.keep && error == cudaSuccess; ++args.step) {
        error = launch(step_kernel<T, rule>, warps_grid, kStepThreads, 0, call.stream, args);
    }
    if (error != cudaSuccess) {
        return error;
    }
    return launch(sort_kernel, dim3(call.batch()), kSortThreads, 0, call.stream, args);
}

cudaError_t gather(const Call& call, void* kept_tokens) {
    const int bytes = call.problem.dtype == DIVPRUNE_FLOAT32 ? 4 : 2;
    GatherArgs args{};
    args.tokens = call.tokens;
    args.kept = call.kept;
    args.kept_tokens = kept_tokens;
    args.n = call.problem.candidates;
    args.keep = call.problem.keep;
    args.row_bytes = call.problem.width * bytes;
    const dim3 grid(static_cast<unsigned>(call.problem.keep), call.batch());
    return launch(gather_kernel, grid, kGatherThreads, 0, call.stream, args);
}

template <class T, Rule rule>
cudaError_t select(const Call& call, void* kept_tokens) {
    cudaError_t error = norms<T>(call);
    // The sum rule starts from a seed, so without a stored matrix it needs no pass over all pairs.
    const bool wants_nearest = rule == Rule::kMaxMin;
    if (error == cudaSuccess && (call.plan.stored || wants_nearest)) {
        error = distances<T>(call, call.plan.stored ? call.at.matrix : nullptr, call.plan.stride,
                             wants_nearest ? call.at.nearest : nullptr);
    }
    if (error == cudaSuccess) {
        error = call.plan.stored ? pick_stored<rule>(call) : pick_matrix_free<T, rule>(call);
    }
    if (error == cudaSuccess && kept_tokens != nullptr) {
        error = gather(call, kept_tokens);
    }
    return error;
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
    return workspace_bytes < make_plan(*problem).layout.bytes ? DIVPRUNE_WORKSPACE_TOO_SMALL : DIVPRUNE_OK;
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
    const Plan plan = make_plan(*problem);
    const Call call{*problem,     plan, tokens, valid, seeds, kept_indices, locate(workspace, plan.layout),
                    static_cast<cudaStream_t>(stream)};
    switch (problem->dtype) {
        case DIVPRUNE_FLOAT32:
            return to_status(select<float, rule>(call, kept_tokens));
        case DIVPRUNE_FLOAT16:
            return to_status(select<__half, rule>(call, kept_tokens));
        default:
            return to_status(select<__nv_bfloat16, rule>(call, kept_tokens));
    }
}

template <class T>
cudaError_t all_distances(const Call& call, float* matrix) {
    const cudaError_t error = norms<T>(call);
    return error != cudaSuccess ? error : distances<T>(call, matrix, call.problem.candidates, nullptr);
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
        *bytes = make_plan(*problem).layout.bytes;
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
        *launches = make_plan(*problem).launches;
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
    const Plan plan = make_plan(*problem);
    const Call call{*problem, plan,    tokens, nullptr, nullptr, nullptr, locate(workspace, plan.layout),
                    static_cast<cudaStream_t>(stream)};
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
    stored.matrix_budget = ~0ull;
    const int status = check_call(&stored, matrix, kept_indices, workspace, workspace_bytes, true);
    if (status != DIVPRUNE_OK) {
        return status;
    }
    const Plan plan = make_plan(stored);
    const Call call{stored, plan, nullptr, valid, seeds, kept_indices, locate(workspace, plan.layout),
                    static_cast<cudaStream_t>(stream)};
    const AdoptArgs adopt{matrix, valid, call.at.matrix, call.at.nearest, stored.candidates, plan.stride};
    const cudaError_t error = launch(adopt_kernel, call.per_row(), kAdoptThreads, 0, call.stream, adopt);
    if (error != cudaSuccess) {
        return to_status(error);
    }
    return to_status(seeds == nullptr ? pick_stored<Rule::kMaxMin>(call) : pick_stored<Rule::kMinSum>(call));
}
