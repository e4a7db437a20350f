// One block computes one square tile of the distance matrix, or one part of its dot products.

#pragma once

#include "device.cuh"

namespace divprune {

// How a block's warps share a tile: two rows of warps; a panel is what one row of warps holds.
template <int kTile>
struct Geometry {
    static_assert(kTile == 64 || kTile == 128, "tiles are 64 or 128 wide");
    // One for each row of either side.
    static constexpr int kThreads = 2 * kTile;
    // That a multiprocessor holds at least.
    static constexpr int kBlocks = kTile == 64 ? 3 : 2;
    static constexpr int kWarps = kThreads / kWarp;
    static constexpr int kPanels = 2;
    static constexpr int kPanel = kTile / kPanels;
    static constexpr int kWarpCols = kTile / (kWarps / kPanels);
    // Floats from row to row of a panel in shared memory; the padding spreads a column over the banks.
    static constexpr int kPanelStride = kTile + 4;
    static constexpr int kPanelBytes = kPanel * kPanelStride * static_cast<int>(sizeof(float));

    static __device__ int warp_row() { return threadIdx.x / kWarp % kPanels; }
    static __device__ int warp_col() { return threadIdx.x / kWarp / kPanels; }
};

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
