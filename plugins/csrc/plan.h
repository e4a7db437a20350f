// From the sizes of a selection to launches and workspace: host arithmetic only, no CUDA.

#pragma once

#include <cstddef>
#include <cstdint>

#include "max_min.h"

namespace divprune {

constexpr int kMaxBatch = 65535;
constexpr int kMaxCandidates = 32768;
constexpr int kMaxWidth = 65536;
constexpr uint64_t kDefaultMatrixBudget = 256ull << 20;
// Enough blocks to fill the largest GPUs twice; the same on every device, so that the split of the sums, and with
// it every bit of the distances, does not depend on the number of multiprocessors.
constexpr int kWantedBlocks = 264;
constexpr int kMaxSplits = 8;
// No part of a split dot product is shorter than this.
constexpr int kShortestSplit = 256;

// Offsets in bytes into the workspace; every part starts on 256 bytes.
struct Layout {
    uint64_t norms;     // float [B, N]
    uint64_t nearest;   // uint32 [B, N]: ordered distance to the nearest other valid row
    uint64_t arrivals;  // uint32 [B, tiles]: how many splits of a tile are written
    uint64_t partials;  // float [B, tiles, splits, tile, tile]
    uint64_t matrix;    // float [B, N, stride]
    uint64_t values;    // float [B, N]: matrix-free only
    uint64_t best;      // uint64 [B, K]: matrix-free only
    uint64_t bytes;
};

struct Plan {
    int tile;        // side of a tile of distances, 64 or 128
    int tiles;       // tiles in the upper triangle
    int splits;      // parts of a dot product computed by different blocks
    int split;       // length of a part, a multiple of 32
    int stride;      // floats from row to row of the stored matrix
    bool stored;     // false: matrix-free
    int launches;    // kernels that one selection starts
    Layout layout;
};

// Checks the sizes: DIVPRUNE_OK or the first thing wrong. `picks_only` ignores width and dtype.
int check_problem(const divprune_problem& problem, bool picks_only = false);

// Plans a checked selection. `wants_tokens` counts the gather.
Plan make_plan(const divprune_problem& problem, bool wants_tokens = true);

// Bytes of workspace that are enough for the checked selection and every smaller one.
uint64_t workspace_bound(const divprune_problem& problem);

}  // namespace divprune
