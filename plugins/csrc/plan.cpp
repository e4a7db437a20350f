#include "plan.h"

#include <algorithm>

#include "selection.h"

namespace divprune {
namespace {

constexpr uint64_t kAlignment = 256;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Hands out aligned parts of the workspace, one after the other.
class Allotment {
public:
    uint64_t take(uint64_t bytes) {
        const uint64_t at = end_;
        end_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        return at;
    }
    uint64_t end() const { return end_; }

private:
    uint64_t end_ = 0;
};

}  // namespace

int check_problem(const divprune_problem& problem, bool picks_only) {
    if (problem.batch < 1 || problem.batch > kMaxBatch) {
        return DIVPRUNE_BAD_BATCH;
    }
    if (problem.candidates < 1 || problem.candidates > kMaxCandidates) {
        return DIVPRUNE_BAD_CANDIDATES;
    }
    if (problem.keep < 1 || problem.keep > problem.candidates) {
        return DIVPRUNE_BAD_KEEP;
    }
    if (picks_only) {
        return DIVPRUNE_OK;
    }
    if (problem.width < 8 || problem.width > kMaxWidth || problem.width % 8 != 0) {
        return DIVPRUNE_BAD_WIDTH;
    }
    if (problem.dtype < DIVPRUNE_FLOAT32 || problem.dtype > DIVPRUNE_BFLOAT16) {
        return DIVPRUNE_BAD_DTYPE;
    }
    return DIVPRUNE_OK;
}

Plan make_plan(const divprune_problem& problem, bool wants_tokens) {
    const int n = problem.candidates;
    const uint64_t items = static_cast<uint64_t>(problem.batch);
    Plan plan{};
    // Large tiles reuse more of what they load; small ones give few candidates enough blocks to fill a GPU.
    plan.tile = items * triangle_tiles(ceil_div(n, 128)) >= kWantedBlocks ? 128 : 64;
    plan.tiles = triangle_tiles(ceil_div(n, plan.tile));
    const int blocks = static_cast<int>(std::min<uint64_t>(items * plan.tiles, kWantedBlocks));
    const int wanted = std::min({ceil_div(kWantedBlocks, blocks), kMaxSplits, problem.width / kShortestSplit});
    plan.split = round_up(ceil_div(problem.width, std::max(wanted, 1)), 32);
    plan.splits = ceil_div(problem.width, plan.split);
    plan.stride = round_up(n, 4);
    const uint64_t matrix = items * n * plan.stride * sizeof(float);
    const uint64_t budget = problem.matrix_budget == 0 ? kDefaultMatrixBudget : problem.matrix_budget;
    plan.stored = matrix <= budget;
    // Norms, distances and the picks; matrix-free, one launch for each pick and one that sorts them.
    plan.launches = (plan.stored ? 3 : 3 + problem.keep) + (wants_tokens ? 1 : 0);

    Allotment part;
    const uint64_t rows = items * n;
    plan.layout.norms = part.take(rows * sizeof(float));
    plan.layout.nearest = part.take(rows * sizeof(uint32_t));
    const bool split = plan.splits > 1;
    plan.layout.arrivals = part.take(split ? items * plan.tiles * sizeof(uint32_t) : 0);
    const uint64_t tile_bytes = static_cast<uint64_t>(plan.tile) * plan.tile * sizeof(float);
    plan.layout.partials = part.take(split ? items * plan.tiles * plan.splits * tile_bytes : 0);
    plan.layout.matrix = part.take(plan.stored ? matrix : 0);
    plan.layout.values = part.take(plan.stored ? 0 : rows * sizeof(float));
    plan.layout.best = part.take(plan.stored ? 0 : items * problem.keep * sizeof(uint64_t));
    plan.layout.bytes = part.end();
    return plan;
}

uint64_t workspace_bound(const divprune_problem& problem) {
    const uint64_t rows = static_cast<uint64_t>(problem.batch) * problem.candidates;
    const uint64_t matrix = rows * round_up(problem.candidates, 4) * sizeof(float);
    const uint64_t budget = problem.matrix_budget == 0 ? kDefaultMatrixBudget : problem.matrix_budget;
    // Dot products are split only below kWantedBlocks small tiles, into fewer than twice as many parts.
    const uint64_t parts = 2 * kWantedBlocks;
    Allotment part;
    part.take(rows * sizeof(float));
    part.take(rows * sizeof(uint32_t));
    part.take(parts * sizeof(uint32_t));
    part.take(parts * 64 * 64 * sizeof(float));
    part.take(std::min(matrix, budget));
    part.take(rows * sizeof(float));
    part.take(static_cast<uint64_t>(problem.batch) * problem.keep * sizeof(uint64_t));
    return part.end();
}

}  // namespace divprune
