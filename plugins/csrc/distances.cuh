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
    constexpr int fma = larger(FmaProduct<T, kTile>::kSharedBytes, Geometry<kTile>::kTileBytes);
    if constexpr (std::is_same<T, float>::value) {
        return fma;
    } else {
        return larger(MmaProduct<T, kTile>::kSharedBytes, fma);
    }
}

// The blocks of a cluster that have one part each of the same thing: from `first` on, `apart` from each other.
struct Team {
    int parts;
    int first = 0;
    int apart = 1;

    __device__ __forceinline__ int rank(int part) const { return first + part * apart; }
};

// What a tile's distances need of its rows and columns, and what they say of them. One thread has one row of either
// side.
template <int kTile>
struct Sides {
    float squares[2][kTile];  // sums over this block's part
    float norms[2][kTile];
    bool counts[2][kTile];
    uint32_t nearest[2][kTile];  // over the pairs that this block finishes

    static __device__ int side() { return threadIdx.x / kTile; }
    static __device__ int at() { return threadIdx.x % kTile; }
    static __device__ int row(Tile tile) { return (side() == 0 ? tile.row : tile.column) * kTile + at(); }

    __device__ void begin(const DistanceArgs& args, int64_t base, Tile tile) {
        const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
        counts[side()][at()] = row(tile) < args.n && row_is_valid(valid, row(tile));
        nearest[side()][at()] = ordered(kFar);
    }

    // Norms from the squares of all parts, always added in the same order. The team has those of this thread's side.
    __device__ void find_norms(const Team& team) {
        float sum = 0.0f;
        for (int part = 0; part < team.parts; ++part) {
            sum += *of_block(&squares[side()][at()], team.rank(part));
        }
        norms[side()][at()] = fmaxf(sqrtf(sum), kTiny);
    }

    // Each row's nearest in the rows of the other side; on the diagonal both sides are the same rows.
    __device__ void write(const DistanceArgs& args, int64_t base, Tile tile, const Team& team) {
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
        for (int part = 0; part < team.parts; ++part) {
            const uint32_t own = *of_block(&nearest[side()][at()], team.rank(part));
            const uint32_t other = diagonal ? *of_block(&nearest[1][at()], team.rank(part)) : own;
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

// Of a tile, which a block finishes.
struct Rows {
    int begin;
    int end;
};

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

// Four dot products, whose parts the blocks of the team have in the same place, always added in the same order.
__device__ __forceinline__ float4 sum_of_parts(float4* at, const Team& team) {
    if (team.parts == 1) {
        return *at;
    }
    float4 sum{};
#pragma unroll 4
    for (int part = 0; part < team.parts; ++part) {
        const float4 four = *of_block(at, team.rank(part));
        sum.x += four.x;
        sum.y += four.y;
        sum.z += four.z;
        sum.w += four.w;
    }
    return sum;
}

// Turns this block's rows of dot products into distances of the pairs i < j, and finds each row's nearest. A distance
// is computed once, so the matrix is exactly symmetric; the diagonal, and what lies below it, is 0. A thread has four
// neighbouring columns of a row at a time.
template <int kTile>
__device__ void measure_rows(Tile tile, Sides<kTile>& sides, float* shared, Rows rows, const Team& team) {
    using G = Geometry<kTile>;
    constexpr int kLanes = kTile / 4;
    const int c = threadIdx.x % kLanes * 4;
    for (int r = rows.begin + threadIdx.x / kLanes; r < rows.end; r += G::kThreads / kLanes) {
        float4* at = reinterpret_cast<float4*>(shared + r * G::kStride + c);
        const float4 dots = sum_of_parts(at, team);
        float distances[4] = {dots.x, dots.y, dots.z, dots.w};
        float nearest = kFar;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const bool is_pair = tile.column * kTile + c + e > tile.row * kTile + r;
            const float distance = cosine_distance(distances[e], sides.norms[0][r], sides.norms[1][c + e]);
            distances[e] = is_pair ? distance : 0.0f;
            if (is_pair && sides.counts[0][r] && sides.counts[1][c + e]) {
                nearest = accumulate<Rule::kMaxMin>(nearest, distance);
            }
        }
        *at = {distances[0], distances[1], distances[2], distances[3]};
        const uint32_t least = least_of_lanes<kLanes>(ordered(nearest));
        if (threadIdx.x % kLanes == 0) {
            sides.nearest[0][r] = least;
        }
    }
}

constexpr int kColumnLanes = 4;

// Finds each column's nearest in this block's rows. A thread has four neighbouring rows of a column at a time.
template <int kTile>
__device__ void measure_columns(Tile tile, Sides<kTile>& sides, const float* shared, Rows rows) {
    using G = Geometry<kTile>;
    for (int col = threadIdx.x / kColumnLanes; col < kTile; col += G::kThreads / kColumnLanes) {
        float nearest = kFar;
        for (int r = rows.begin + threadIdx.x % kColumnLanes * 4; r < rows.end; r += 4 * kColumnLanes) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const bool is_pair = tile.row * kTile + r + e < tile.column * kTile + col;
                if (is_pair && sides.counts[0][r + e] && sides.counts[1][col]) {
                    nearest = accumulate<Rule::kMaxMin>(nearest, shared[(r + e) * G::kStride + col]);
                }
            }
        }
        const uint32_t least = least_of_lanes<kColumnLanes>(ordered(nearest));
        if (threadIdx.x % kColumnLanes == 0) {
            sides.nearest[1][col] = least;
        }
    }
}

// Writes this block's rows of distances to rows i and, mirrored, to rows j.
template <int kTile>
__device__ void write_tile(const DistanceArgs& args, int64_t base, Tile tile, const float* shared, Rows rows) {
    using G = Geometry<kTile>;
    constexpr int kLanes = kTile / 4;
    float* matrix = args.matrix + base * args.stride;
    const bool vectors = args.stride % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
    const int c = threadIdx.x % kLanes * 4;
    for (int r = rows.begin + threadIdx.x / kLanes; r < rows.end; r += G::kThreads / kLanes) {
        const int i = tile.row * kTile + r;
        if (i < args.n) {
            const float4 four = *reinterpret_cast<const float4*>(shared + r * G::kStride + c);
            const float distances[4] = {four.x, four.y, four.z, four.w};
            write_distances(matrix + static_cast<int64_t>(i) * args.stride, tile.column * kTile + c, distances, i,
                            args.n, vectors);
        }
    }
    for (int col = threadIdx.x / kColumnLanes; col < kTile; col += G::kThreads / kColumnLanes) {
        const int j = tile.column * kTile + col;
        for (int r = rows.begin + threadIdx.x % kColumnLanes * 4; r < rows.end && j < args.n; r += 4 * kColumnLanes) {
            float distances[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                distances[e] = shared[(r + e) * G::kStride + col];
            }
            write_distances(matrix + static_cast<int64_t>(j) * args.stride, tile.row * kTile + r, distances, 0, j,
                            vectors);
        }
    }
}

// The rows of a tile that the block with this part of its dot products finishes.
template <int kTile>
__device__ __forceinline__ Rows rows_of(int part, const Team& team) {
    const int count = kTile / team.parts;
    return {part * count, part * count + count};
}

// Grid (tiles * parts, B), clusters of `parts` blocks: each block multiplies one part of a tile of the upper triangle,
// and finishes as many of its rows. What is written to memory comes last, as a barrier of a cluster waits for it.
template <class T, int kTile>
__global__ void __launch_bounds__(Geometry<kTile>::kThreads, Geometry<kTile>::kBlocks)
    distances_kernel(DistanceArgs args) {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    __shared__ Sides<kTile> sides;
    float* shared = reinterpret_cast<float*>(shared_bytes);
    const int64_t base = static_cast<int64_t>(blockIdx.y) * args.n;
    const Tile tile = triangle_tile(static_cast<int>(blockIdx.x) / args.parts, args.side);
    const int from = static_cast<int>(blockIdx.x) % args.parts * args.part;
    const int begin = from < args.width ? from : args.width;
    const int end = begin + args.part < args.width ? begin + args.part : args.width;
    const T* tokens = static_cast<const T*>(args.tokens) + base * args.width;
    {
        typename ProductFor<T, kTile>::type product;
        product.run(TileRows<T>{tokens, args.n, args.width, tile.row * kTile, tile.column * kTile, begin, end},
                    shared_bytes);
        let_next_launch_begin();
        sides.squares[sides.side()][sides.at()] = product.squares();
        sides.begin(args, base, tile);
        product.store(shared);
    }
    const Team team{args.parts};
    cluster_sync(args.parts);
    sides.find_norms(team);
    __syncthreads();
    const Rows rows = rows_of<kTile>(cluster_rank(), team);
    measure_rows(tile, sides, shared, rows, team);
    __syncthreads();
    measure_columns(tile, sides, shared, rows);
    cluster_sync(args.parts);
    if (cluster_rank() == 0) {
        sides.write(args, base, tile, team);
    }
    if (args.matrix != nullptr) {
        write_tile<kTile>(args, base, tile, shared, rows);
    }
    args.reset.run();
    if (args.parts > 1) {
        cluster_meet(args.parts);  // nobody leaves while the first one reads
    }
}

}  // namespace divprune
