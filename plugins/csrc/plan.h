// From the sizes of a selection to launches and workspace: host arithmetic only, no CUDA.

#pragma once

#include <cstddef>
#include <cstdint>

#include "max_min.h"
#include "tuning.h"

namespace divprune {

constexpr int kMaxBatch = 65535;
constexpr int kMaxCandidates = 32768;
constexpr int kMaxWidth = 65536;
constexpr uint64_t kDefaultMatrixBudget = 256ull << 20;
constexpr int kSmallTile = 64;
constexpr int kLargeTile = 128;
// No part of a split dot product is shorter than this.
constexpr int kShortestPart = 256;

// What a selection needs on every GPU. Offsets are in bytes into the workspace; every part starts on 256 bytes.
struct Layout {
    int stride;        // floats from row to row of the stored matrix, and of `nearest`
    bool stored;       // false: matrix-free
    int launches;      // kernels that one selection starts
    uint64_t best;     // uint64 [B, K]: matrix-free only
    uint64_t state;    // uint32 [1 + B]: what is zero when the picks begin, after `best`, which is, too
    uint64_t norms;    // float [B, N]: matrix-free only
    uint64_t values;   // float [B, N]: matrix-free only
    uint64_t nearest;  // uint32 [B, ceil(N / tile), stride]: ordered distance to the nearest valid row of a tile
    uint64_t matrix;   // float [B, N, stride]
    uint64_t bytes;
};

// How a selection is spread over one GPU.
struct Plan {
    int product;    // as in divprune_spread; by warpgroups, tiles are 128 wide and a block has two neighbours
    int tile;       // side of a tile of distances, 64 or 128
    int columns;    // of distances that a block makes
    int side;       // tiles in a row of them
    int tiles;      // blocks that the upper triangle takes, if none are shared
    int parts;      // blocks of a cluster that share the dot products of a tile
    int pair;       // blocks of a cluster that have rows below each other, 1 or 2
    int part;       // length of a part, a multiple of 32
    double cycles;  // until the distances are there, estimated
    int shards;     // blocks of a cluster that share the picks of an item
    int vectors;    // vectors of four rows that a thread holds
    int threads;    // of a block that picks
    int workers;    // blocks that copy the kept rows of an item
};

// Whether a GPU can multiply these tokens by warpgroups.
bool has_wgmma(const divprune_problem& problem, const Tuning& tuning);

// Checks the sizes: DIVPRUNE_OK or the first thing wrong. `picks_only` ignores width and dtype.
int check_problem(const divprune_problem& problem, bool picks_only = false);

// Lays out a checked selection. `wants_tokens` counts the gather.
Layout make_layout(const divprune_problem& problem, bool wants_tokens = true);

// Plans a checked selection, whose product it has, for a GPU of so many multiprocessors.
Plan make_plan(const divprune_problem& problem, const Tuning& tuning, int multiprocessors);

// Bytes of workspace that are enough for the checked selection and every smaller one.
uint64_t workspace_bound(const divprune_problem& problem);

}  // namespace divprune
