// The selection on the CPU, on ONNX Runtime's threads.

#include "../cpu/max_min.h"

#include "operator.h"

namespace divprune {
namespace {

struct Threads {
    const Run& run;
    OrtStatus* status;
};

bool run_tasks(void* context, void (*task)(void* data, size_t index), size_t count, void* data) {
    Threads& threads = *static_cast<Threads*>(context);
    threads.status = threads.run.api->KernelContext_ParallelFor(threads.run.context, task, count, 0, data);
    return threads.status == nullptr;
}

// The valid row with the largest attention, of equal ones the first.
int64_t most_attended(const float* attention, const uint8_t* valid, int rows) {
    uint64_t best = 0;
    for (int i = 0; i < rows; ++i) {
        const uint64_t mine = candidate(attention[i], static_cast<uint32_t>(i));
        best = valid[i] != 0 && mine > best ? mine : best;
    }
    return best == 0 ? 0 : candidate_index(best);
}

}  // namespace

OrtStatus* compute_cpu(const Run& run) {
    static const Instructions* const instructions = best_instructions();
    const divprune_problem& problem = run.problem;
    const size_t row_bytes = static_cast<size_t>(problem.width) * (problem.dtype == DIVPRUNE_FLOAT32 ? 4 : 2);
    Scratch scratch(run);
    void* at = nullptr;
    DIVPRUNE_RETURN_IF_FAILED(
        scratch.allocate(cpu_scratch_bytes(*instructions, problem.candidates, problem.width), false, &at));
    Threads threads{run, nullptr};
    for (int64_t item = 0; item < problem.batch; ++item) {
        const uint8_t* valid = run.valid + item * problem.candidates;
        const int64_t seed =
            run.rule == Rule::kMaxMin
                ? 0
                : most_attended(run.attention + item * problem.candidates, valid, problem.candidates);
        const auto* tokens = static_cast<const unsigned char*>(run.tokens) + item * problem.candidates * row_bytes;
        auto* kept = static_cast<unsigned char*>(run.kept_tokens) + item * problem.keep * row_bytes;
        if (!cpu_select(*instructions, run.rule, problem, tokens, valid, seed, kept,
                        run.kept_indices + item * problem.keep, at, {&threads, run_tasks})) {
            break;
        }
    }
    return threads.status;
}

}  // namespace divprune
