// Cosine distances of all pairs, each row's norm, and its distance to the nearest valid row of every tile.

#pragma once

#include <type_traits>

#include "cluster.cuh"
#include "product_fma.cuh"
#include "product_mma.cuh"

namespace divprune {

struct DistanceArgs {
    const void* tokens;
    const uint8_t* valid;
    float* matrix;      // NULL: distances are not stored
    uint32_t* nearest;  // NULL: not wanted
    float* norms;       // NULL: not wanted
    Reset reset;
    int n;
    int width;
    int stride;
    int nearest_stride;
    int side;
    int parts;
    int part;
};

// 16-bit tokens go through the tensor cores, float32 tokens and bfloat16 before sm_80 through the FMA units.
template <class T, int kTile>
struct ProductFor {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    static constexpr bool kTensorCores = std::is_same<T, __half>::value;
#else
    static constexpr bool kTensorCores = !std::is_same<T, float>::value;
#endif
    using type = std::conditional_t<kTensorCores, MmaProduct<T, kTile>, FmaProduct<T, kTile>>;
};

constexpr int larger(int a, int b) { return a > b ? a : b; }

// Dynamic shared memory of the kernel below: enough for either product on any architecture.
template <class T, int kTile>
constexpr int distance_shared_bytes() {
    constexpr int fma = larger(FmaProduct<T, kTile>::kSharedBytes, Geometry<kTile>::kPanelBytes);
    if constexpr (std::is_same<T, float>::value) {
        return fma;
    } else {
        return larger(MmaProduct<T, kTile>::kSharedBytes, fma);
    }
}

// What a tile's distances need of its rows and columns, and what they say of them. One thread has one row of either side.
template <int kTile>
struct Sides {
    float squares[2][kTile];  // sums over this block's part
    float norms[2][kTile];
    bool counts[2][kTile];
    uint32_t nearest[2][kTile];  // over the pairs that this block finishes

    static __device__ int side() { return threadIdx.x / kTile; }
    static __device__ int at() { return threadIdx.x % kTile; }
    static __device__ int row(Tile tile) { return (side() == 0 ? tile.row : tile.column) * kTile + at(); }

    __device__ void begin(const DistanceArgs& args, int64_t base, Tile tile, float own_squares) {
        squares[side()][at()] = own_squares;
        const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
        counts[side()][at()] = row(tile) < args.n && row_is_valid(valid, row(tile));
        nearest[side()][at()] = ordered(kFar);
    }

    // Norms from the squares of all parts, always added in the same order.
    __device__ void find_norms(int parts) {
        float sum = 0.0f;
        for (int rank = 0; rank < parts; ++rank) {
            sum += *of_block(&squares[side()][at()], rank);
        }
        norms[side()][at()] = fmaxf(sqrtf(sum), kTiny);
    }

    // Each row's nearest in the rows of the other side; on the diagonal both sides are the same rows.
    __device__ void write(const DistanceArgs& args, int64_t base, Tile tile) {
        const bool diagonal = tile.row == tile.column;
        if (row(tile) >= args.n || (diagonal && side() == 1)) {
            return;
        }
        if (diagonal && args.norms != nullptr) {
            args.norms[base + row(tile)] = norms[0][at()];
        }
        if (args.nearest == nullptr) {
            return;
        }
        uint32_t least = ordered(kFar);
        for (int rank = 0; rank < args.parts; ++rank) {
            const uint32_t own = *of_block(&nearest[side()][at()], rank);
            const uint32_t other = diagonal ? *of_block(&nearest[1][at()], rank) : own;
            const uint32_t nearer = other < own ? other : own;
            least = nearer < least ? nearer : least;
        }
        const int64_t slot = static_cast<int64_t>(blockIdx.y) * args.side + (side() == 0 ? tile.column : tile.row);
        args.nearest[slot * args.nearest_stride + row(tile)] = least;
    }
};

// Writes those of four neighbouring distances whose column is in [begin, end), as one vector where it is whole.
__device__ __forceinline__ void write_distances(float* row, int column, const float (&distances)[4], int begin,
                                                int end, bool vectors) {
    if (vectors && column >= begin && column + 4 <= end) {
        *reinterpret_cast<float4*>(row + column) = {distances[0], distances[1], distances[2], distances[3]};
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        if (column + e >= begin && column + e < end) {
            row[column + e] = distances[e];
        }
    }
}

// The least of `kLanes` neighbouring lanes, in the first of them.
template <int kLanes>
__device__ __forceinline__ uint32_t least_of_lanes(uint32_t key) {
#pragma unroll
    for (int away = kLanes / 2; away > 0; away /= 2) {
        const uint32_t other = __shfl_xor_sync(kFullWarp, key, away);
        key = other < key ? other : key;
    }
    return key;
}

// Four dot products, whose parts the blocks of the cluster have in the same place, always added in the same order.
__device__ __forceinline__ float4 sum_of_parts(float4* at, int parts) {
    if (parts == 1) {
        return *at;
    }
    float4 sum{};
#pragma unroll 4
    for (int rank = 0; rank < parts; ++rank) {
        const float4 part = *of_block(at, rank);
        sum.x += part.x;
        sum.y += part.y;
        sum.z += part.z;
        sum.w += part.w;
    }
    return sum;
}

// Turns this block's rows of a panel of dot products into distances of the pairs i < j and writes them to rows i and,
// mirrored, to rows j: a distance is computed once, so the matrix is exactly symmetric. The diagonal is 0. A thread has
// four neighbouring columns of a row at a time, and then four neighbouring rows of a column.
template <int kTile>
__device__ void emit_panel(const DistanceArgs& args, int64_t base, Tile tile, int p, Sides<kTile>& sides, float* panel) {
    using G = Geometry<kTile>;
    constexpr int kRowLanes = kTile / 4;
    constexpr int kColLanes = 4;
    const int rows = G::kPanel / args.parts;
    const int begin = cluster_rank() * rows;
    const int first_row = tile.row * kTile + p * G::kPanel;
    const int first_col = tile.column * kTile;
    float* matrix = args.matrix == nullptr ? nullptr : args.matrix + base * args.stride;
    const bool vectors = args.stride % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;

    const int c = threadIdx.x % kRowLanes * 4;
    for (int r = begin + threadIdx.x / kRowLanes; r < begin + rows; r += G::kThreads / kRowLanes) {
        const int i = first_row + r;
        const int side_row = p * G::kPanel + r;
        float4* at = reinterpret_cast<float4*>(panel + r * G::kPanelStride + c);
        const float4 dots = sum_of_parts(at, args.parts);
        float distances[4] = {dots.x, dots.y, dots.z, dots.w};
        float nearest = kFar;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const bool is_pair = first_col + c + e > i;
            const float distance = cosine_distance(distances[e], sides.norms[0][side_row], sides.norms[1][c + e]);
            distances[e] = is_pair ? distance : 0.0f;
            if (is_pair && sides.counts[0][side_row] && sides.counts[1][c + e]) {
                nearest = accumulate<Rule::kMaxMin>(nearest, distance);
            }
        }
        *at = {distances[0], distances[1], distances[2], distances[3]};
        if (matrix != nullptr && i < args.n) {
            write_distances(matrix + static_cast<int64_t>(i) * args.stride, first_col + c, distances, i, args.n,
                            vectors);
        }
        const uint32_t least = least_of_lanes<kRowLanes>(ordered(nearest));
        if (threadIdx.x % kRowLanes == 0) {
            sides.nearest[0][side_row] = least;
        }
    }
    __syncthreads();
    for (int col = threadIdx.x / kColLanes; col < kTile; col += G::kThreads / kColLanes) {
        const int j = first_col + col;
        float nearest = kFar;
        for (int r = begin + threadIdx.x % kColLanes * 4; r < begin + rows; r += 4 * kColLanes) {
            float distances[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                distances[e] = panel[(r + e) * G::kPanelStride + col];
                const bool is_pair = first_row + r + e < j;
                if (is_pair && sides.counts[0][p * G::kPanel + r + e] && sides.counts[1][col]) {
                    nearest = accumulate<Rule::kMaxMin>(nearest, distances[e]);
                }
            }
            if (matrix != nullptr && j < args.n) {
                write_distances(matrix + static_cast<int64_t>(j) * args.stride, first_row + r, distances, 0, j,
                                vectors);
            }
        }
        const uint32_t least = least_of_lanes<kColLanes>(ordered(nearest));
        if (threadIdx.x % kColLanes == 0 && least < sides.nearest[1][col]) {
            sides.nearest[1][col] = least;
        }
    }
}

// Grid (tiles * parts, B), clusters of `parts` blocks: each block multiplies one part of a tile of the upper triangle, and
// finishes as many of its rows.
template <class T, int kTile>
__global__ void __launch_bounds__(Geometry<kTile>::kThreads, Geometry<kTile>::kBlocks) distances_kernel(DistanceArgs args) {
    using G = Geometry<kTile>;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    __shared__ Sides<kTile> sides;
    float* panel = reinterpret_cast<float*>(shared_bytes);
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.n;
    const Tile tile = triangle_tile(static_cast<int>(blockIdx.x) / args.parts, args.side);
    const int from = static_cast<int>(blockIdx.x) % args.parts * args.part;
    const int begin = from < args.width ? from : args.width;
    const int end = begin + args.part < args.width ? begin + args.part : args.width;
    const T* tokens = static_cast<const T*>(args.tokens) + base * args.width;
    args.reset.run();

    typename ProductFor<T, kTile>::type product;
    product.run(TileRows<T>{tokens, args.n, args.width, tile.row * kTile, tile.column * kTile, begin, end},
                shared_bytes);
    let_next_launch_begin();
    sides.begin(args, base, tile, product.squares());
#pragma unroll 1
    for (int p = 0; p < G::kPanels; ++p) {
        product.store_panel(p, panel);
        cluster_sync(args.parts);
        if (p == 0) {
            sides.find_norms(args.parts);
            __syncthreads();
        }
        emit_panel<kTile>(args, base, tile, p, sides, panel);
        cluster_sync(args.parts);
    }
    if (cluster_rank() == 0) {
        sides.write(args, base, tile);
    }
    if (args.parts > 1) {
        cluster_sync(args.parts);  // nobody leaves while the first one reads
    }
}

}  // namespace divprune
