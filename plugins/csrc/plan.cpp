#include "plan.h"

#include <algorithm>

#include "selection.h"

namespace divprune {
namespace {

constexpr uint64_t kAlignment = 256;
// Cycles of a tile's distances after its dot products, for each pair, and of bringing the parts together.
constexpr double kFinish = 0.4;
constexpr double kJoin = 1000;
// The first architecture with tensor cores for bfloat16, and with more than 64 KiB of shared memory.
constexpr int kAmpere = 80;
// Cycles before the first block multiplies and after the last one has.
constexpr double kEnds = 3000;

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

bool takes(int product, const divprune_problem& problem, const Tuning& tuning) {
    if (product == DIVPRUNE_PRODUCT_WGMMA) {
        return has_wgmma(problem, tuning) && (problem.product == product ||
                                              (problem.product == DIVPRUNE_PRODUCT_TUNED && tuning.takes_wgmma));
    }
    return problem.product != DIVPRUNE_PRODUCT_WGMMA;
}

bool uses_tensor_cores(const divprune_problem& problem, const Tuning& tuning) {
    return problem.dtype == DIVPRUNE_FLOAT16 ||
           (problem.dtype == DIVPRUNE_BFLOAT16 && tuning.architecture >= kAmpere);
}

// Cycles until a GPU has all distances. Its multiprocessors multiply or wait for the L2 cache, whichever takes longer,
// and the one with the most blocks ends last.
double distance_cycles(const divprune_problem& problem, const Tuning& tuning, int multiprocessors, const Plan& plan) {
    const double pairs = static_cast<double>(plan.tile) * plan.columns;
    const int rate = plan.product == DIVPRUNE_PRODUCT_WGMMA ? tuning.wgmma
                     : uses_tensor_cores(problem, tuning)   ? tuning.tensor
                                                            : tuning.fma;
    const double multiply = pairs * plan.part / rate;
    const int bytes = problem.dtype == DIVPRUNE_FLOAT32 ? 4 : 2;
    // Of a pair each block brings its rows and half of the columns.
    const double load = static_cast<double>(plan.tile + plan.columns / plan.pair) * plan.part * bytes / tuning.l2;
    const double finish = kFinish * pairs / plan.parts + (plan.parts > 1 ? kJoin + pairs * 4 / tuning.l2 : 0);
    const double blocks = static_cast<double>(problem.batch) * plan.tiles * plan.parts;
    const double rounds = static_cast<double>(static_cast<int64_t>((blocks - 1) / multiprocessors) + 1);
    return rounds * (std::max(multiply, load) + finish) + kEnds;
}

// Keeps the faster of two plans.
void consider(const divprune_problem& problem, const Tuning& tuning, int multiprocessors, Plan& tried, Plan& plan) {
    tried.cycles = distance_cycles(problem, tuning, multiprocessors, tried);
    if ((tried.parts == 1 || tried.part >= kShortestPart) && (plan.parts == 0 || tried.cycles < plan.cycles)) {
        plan = tried;
    }
}

void plan_pairs(const divprune_problem& problem, const Tuning& tuning, int multiprocessors, Plan& plan) {
    for (int parts = 1; 2 * parts <= tuning.parts; parts *= 2) {
        Plan tried{};
        tried.product = DIVPRUNE_PRODUCT_WGMMA;
        tried.tile = kLargeTile;
        tried.columns = 2 * kLargeTile;
        tried.side = ceil_div(problem.candidates, kLargeTile);
        tried.pair = 2;
        tried.tiles = tried.pair * triangle_tiles(ceil_div(tried.side, 2));
        tried.parts = parts;
        // 128 bytes of a row at a time: no part has any of the next one.
        tried.part = round_up(ceil_div(problem.width, parts), 64);
        consider(problem, tuning, multiprocessors, tried, plan);
    }
}

void plan_tiles(const divprune_problem& problem, const Tuning& tuning, int multiprocessors, Plan& plan) {
    for (const int tile : {kSmallTile, kLargeTile}) {
        // The float32 units are slower than the loads of either tile; large ones would only leave fewer threads. And
        // there is no room for large ones before sm_80.
        if (tile == kLargeTile && (!uses_tensor_cores(problem, tuning) || tuning.architecture < kAmpere)) {
            continue;
        }
        for (int parts = 1; parts <= tuning.parts; parts *= 2) {
            Plan tried{};
            tried.product = problem.dtype == DIVPRUNE_FLOAT32 ? DIVPRUNE_PRODUCT_TUNED : DIVPRUNE_PRODUCT_MMA;
            tried.tile = tried.columns = tile;
            tried.side = ceil_div(problem.candidates, tile);
            tried.pair = 1;
            tried.tiles = triangle_tiles(tried.side);
            tried.parts = parts;
            tried.part = round_up(ceil_div(problem.width, parts), 32);
            consider(problem, tuning, multiprocessors, tried, plan);
        }
    }
}

void plan_picks(const divprune_problem& problem, const Tuning& tuning, int multiprocessors, Plan& plan) {
    plan.shards = 1;
    while (plan.shards < tuning.shards && plan.shards * tuning.shard_rows < problem.candidates &&
           2 * tuning.shard_rows <= problem.candidates) {
        plan.shards *= 2;
    }
    plan.vectors = 1;
    while (plan.vectors * 4 * kPickThreads < problem.candidates) {
        plan.vectors *= 2;
    }
    plan.threads = round_up(ceil_div(problem.candidates, 4 * plan.vectors * plan.shards), 32);
    // Two for each multiprocessor have enough loads on their way.
    plan.workers = std::min(problem.keep, ceil_div(2 * multiprocessors, problem.batch));
}

}  // namespace

bool has_wgmma(const divprune_problem& problem, const Tuning& tuning) {
    return problem.dtype != DIVPRUNE_FLOAT32 && tuning.wgmma > 0;
}

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
    const bool wants_wgmma = problem.product == DIVPRUNE_PRODUCT_WGMMA;
    if (problem.product < DIVPRUNE_PRODUCT_TUNED || problem.product > DIVPRUNE_PRODUCT_WGMMA ||
        (wants_wgmma && problem.dtype == DIVPRUNE_FLOAT32)) {
        return DIVPRUNE_BAD_PRODUCT;
    }
    return DIVPRUNE_OK;
}

Layout make_layout(const divprune_problem& problem, bool wants_tokens) {
    const int n = problem.candidates;
    const uint64_t items = static_cast<uint64_t>(problem.batch);
    const uint64_t rows = items * n;
    Layout layout{};
    layout.stride = round_up(n, 4);
    const uint64_t matrix = rows * layout.stride * sizeof(float);
    const uint64_t budget = problem.matrix_budget == 0 ? kDefaultMatrixBudget : problem.matrix_budget;
    layout.stored = matrix <= budget;
    // Distances, then picks and the copy of what they keep; matrix-free, one launch for each pick, one that sorts them
    // and one that copies.
    layout.launches = layout.stored ? 2 : 2 + problem.keep + (wants_tokens ? 1 : 0);

    Allotment part;
    const uint64_t free = layout.stored ? 0 : 1;
    layout.best = part.take(free * items * problem.keep * sizeof(uint64_t));
    layout.state = part.take((1 + items) * sizeof(uint32_t));
    layout.norms = part.take(free * rows * sizeof(float));
    layout.values = part.take(free * rows * sizeof(float));
    layout.nearest = part.take(items * ceil_div(n, kSmallTile) * layout.stride * sizeof(uint32_t));
    layout.matrix = part.take(layout.stored ? matrix : 0);
    layout.bytes = part.end();
    return layout;
}

Plan make_plan(const divprune_problem& problem, const Tuning& tuning, int multiprocessors) {
    Plan plan{};
    if (takes(DIVPRUNE_PRODUCT_MMA, problem, tuning)) {
        plan_tiles(problem, tuning, multiprocessors, plan);
    }
    if (takes(DIVPRUNE_PRODUCT_WGMMA, problem, tuning)) {
        plan_pairs(problem, tuning, multiprocessors, plan);
    }
    plan_picks(problem, tuning, multiprocessors, plan);
    return plan;
}

uint64_t workspace_bound(const divprune_problem& problem) {
    // What only one of the two ways needs, for both.
    divprune_problem other = problem;
    other.matrix_budget = 1;
    const uint64_t budget = problem.matrix_budget == 0 ? kDefaultMatrixBudget : problem.matrix_budget;
    const uint64_t rows = static_cast<uint64_t>(problem.batch) * problem.candidates;
    Allotment part;
    part.take(make_layout(other).bytes);
    part.take(std::min<uint64_t>(rows * round_up(problem.candidates, 4) * sizeof(float), budget));
    return part.end();
}

}  // namespace divprune
