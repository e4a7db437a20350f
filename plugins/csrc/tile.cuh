// One block computes one square tile of the distance matrix, or one part of its dot products.

#pragma once

#include "device.cuh"

namespace divprune {

// How a block's warps share a tile: two rows of them.
template <int kTile>
struct Geometry {
    static_assert(kTile == 64 || kTile == 128, "tiles are 64 or 128 wide");
    // One for each row of either side.
    static constexpr int kThreads = 2 * kTile;
    // That a multiprocessor holds at least.
    static constexpr int kBlocks = kTile == 64 ? 3 : 2;
    static constexpr int kWarps = kThreads / kWarp;
    static constexpr int kWarpRows = kTile / 2;
    static constexpr int kWarpCols = kTile / (kWarps / 2);
    // Floats from row to row of a tile in shared memory; the padding spreads a column over the banks.
    static constexpr int kStride = kTile + 4;
    static constexpr int kTileBytes = kTile * kStride * static_cast<int>(sizeof(float));

    static __device__ int first_row() { return threadIdx.x / kWarp % 2 * kWarpRows; }
    static __device__ int first_col() { return threadIdx.x / kWarp / 2 * kWarpCols; }
};

// Where warpgroups multiply, a block has two neighbouring tiles of this size, and the block below it two more.
constexpr int kPairTile = 128;
constexpr int kPairThreads = Geometry<kPairTile>::kThreads;

// The rows of one item that a tile multiplies, and the part [begin, end) of their width.
template <class T>
struct TileRows {
    const T* tokens;
    int n;
    int width;
    int first_row;
    int first_col;
    int begin;
    int end;
};

}  // namespace divprune
