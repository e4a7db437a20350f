// The distances of 16-bit tokens on sm_90a: as in distances.cuh, but Hopper's warpgroups multiply.

#pragma once

#include "distances.cuh"
#include "product_wgmma.cuh"

namespace divprune {

// Dynamic shared memory of the kernel below; it begins wherever the fixed one ends.
constexpr int kPairSharedBytes = WgmmaProduct<__half>::kSharedBytes + kEightRows;
static_assert(2 * Geometry<kPairTile>::kTileBytes <= WgmmaProduct<__half>::kSharedBytes, "two tiles fit into the stages");

// Grid (pairs of blocks * parts, B), clusters of `parts` pairs: a pair multiplies one part of four tiles, two and two, each
// block two neighbours in a row, and finishes as many of their rows. Tiles below the diagonal are left as they are.
template <class T>
__global__ void __launch_bounds__(kPairThreads, 1)
    wgmma_distances_kernel(const __grid_constant__ CUtensorMap tokens, DistanceArgs args) {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    __shared__ Sides<kPairTile> sides;
    __shared__ typename WgmmaProduct<T>::Stages stages;
    unsigned char* aligned = shared_bytes + (kEightRows - shared_address(shared_bytes) % kEightRows) % kEightRows;
    float* shared = reinterpret_cast<float*>(aligned);
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.n;
    const int blocks = 2 * args.parts;
    const int part = cluster_rank() / 2;
    const int own = cluster_rank() % 2;
    const Tile four = triangle_tile(static_cast<int>(blockIdx.x) / blocks, (args.side + 1) / 2);
    const int row = 2 * four.row + own;
    const int begin = part * args.part < args.width ? part * args.part : args.width;
    const int end = begin + args.part < args.width ? begin + args.part : args.width;
    stages.init();
    cluster_sync(blocks);
    {
        WgmmaProduct<T> product;
        product.run(tokens,
                    PairRows{static_cast<int>(blockIdx.y), row * kPairTile, 2 * four.column * kPairTile, begin, end,
                             2 * part, own},
                    stages, aligned);
        let_next_launch_begin();
        sides.squares[sides.side()][sides.at()] = product.squares();
        product.store(shared);
    }
    const Team team{args.parts, own, 2};
    const Rows rows = rows_of<kPairTile>(part, team);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        const Tile tile{row, 2 * four.column + half};
        float* dots = shared + half * kPairTile * Geometry<kPairTile>::kStride;
        const bool counts = tile.row <= tile.column && tile.column < args.side;
        sides.begin(args, base, tile);
        cluster_sync(blocks);
        if (counts) {
            // The squares of these columns are with the block that brought them.
            sides.find_norms(Team{args.parts, sides.side() == 0 ? own : half, 2});
            __syncthreads();
            measure_rows(tile, sides, dots, rows, team);
            __syncthreads();
            measure_columns(tile, sides, dots, rows);
        }
        cluster_sync(blocks);
        if (counts && part == 0) {
            sides.write(args, base, tile, team);
        }
        if (counts && args.matrix != nullptr) {
            write_tile<kPairTile>(args, base, tile, dots, rows);
        }
        cluster_meet(blocks);  // nobody begins the next tile, or leaves, while others read of this one
    }
    args.reset.run();
}

}  // namespace divprune
