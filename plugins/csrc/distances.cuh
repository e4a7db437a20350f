// Cosine distances of all pairs, and each row's distance to its nearest other valid row.

#pragma once

#include <type_traits>

#include "product_fma.cuh"
#include "product_mma.cuh"

namespace divprune {

struct DistanceArgs {
    const void* tokens;
    const float* norms;
    const uint8_t* valid;
    float* matrix;      // NULL: distances are not stored
    uint32_t* nearest;  // NULL: not wanted
    float* partials;
    uint32_t* arrivals;
    int n;
    int width;
    int stride;
    int tiles;
    int splits;
    int split;
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

// Where a thread's vector number v of a panel lies in shared memory; in the workspace vectors lie side by side.
template <int kTile>
__device__ __forceinline__ float4* panel_vector(float* panel, int v) {
    const int at = 4 * (threadIdx.x + v * Geometry<kTile>::kThreads);
    return reinterpret_cast<float4*>(panel + at / kTile * Geometry<kTile>::kPanelStride + at % kTile);
}

// Adds this part's sums to the workspace; true in every thread of the block that brought the last part.
template <int kTile, class Product>
__device__ bool deliver_part(const Product& product, const DistanceArgs& args, int64_t tile, int part, float* panel) {
    using G = Geometry<kTile>;
    __shared__ bool last;
    float4* mine = reinterpret_cast<float4*>(args.partials + (tile * args.splits + part) * kTile * kTile);
    for (int p = 0; p < G::kPanels; ++p) {
        product.store_panel(p, panel);
        __syncthreads();
#pragma unroll
        for (int v = 0; v < G::kPanelVectors; ++v) {
            mine[threadIdx.x + (p * G::kPanelVectors + v) * G::kThreads] = *panel_vector<kTile>(panel, v);
        }
        __syncthreads();
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(args.arrivals + tile, 1u) == static_cast<uint32_t>(args.splits - 1);
    }
    __syncthreads();
    __threadfence();
    return last;
}

__device__ __forceinline__ void add(float4& sum, const float4& part) {
    sum.x += part.x;
    sum.y += part.y;
    sum.z += part.z;
    sum.w += part.w;
}

// Sums the parts of one panel, always in the same order, whichever block came last. One block reads what several
// wrote, so that its loads must not wait for each other: a thread has all those of a part in flight.
template <int kTile>
__device__ void gather_parts(const DistanceArgs& args, int64_t tile, int p, float* panel) {
    using G = Geometry<kTile>;
    const float* first = args.partials + tile * args.splits * kTile * kTile + p * G::kPanel * kTile;
    const float4* parts = reinterpret_cast<const float4*>(first) + threadIdx.x;
    float4 sums[G::kPanelVectors] = {};
#pragma unroll 2
    for (int part = 0; part < args.splits; ++part) {
#pragma unroll
        for (int v = 0; v < G::kPanelVectors; ++v) {
            add(sums[v], __ldcg(parts + static_cast<int64_t>(part) * (kTile * kTile / 4) + v * G::kThreads));
        }
    }
#pragma unroll
    for (int v = 0; v < G::kPanelVectors; ++v) {
        *panel_vector<kTile>(panel, v) = sums[v];
    }
}

// What a tile's distances need of its rows and columns: bounded norms, and whether they count.
template <int kTile>
struct Sides {
    float norms[2][kTile];
    bool counts[2][kTile];

    __device__ void load(const DistanceArgs& args, int64_t base, int first_row, int first_col) {
        const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
        for (int k = threadIdx.x; k < 2 * kTile; k += Geometry<kTile>::kThreads) {
            const int side = k / kTile;
            const int row = (side == 0 ? first_row : first_col) + k % kTile;
            const bool inside = row < args.n;
            norms[side][k % kTile] = inside ? args.norms[base + row] : 1.0f;
            counts[side][k % kTile] = inside && row_is_valid(valid, row);
        }
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

// The nearest of `kLanes` neighbouring lanes, brought to a row by the first of them.
template <int kLanes>
__device__ __forceinline__ void bring_nearer(uint32_t* nearest, float distance, bool inside) {
    uint32_t key = ordered(distance);
#pragma unroll
    for (int away = kLanes / 2; away > 0; away /= 2) {
        const uint32_t other = __shfl_xor_sync(kFullWarp, key, away);
        key = other < key ? other : key;
    }
    if (threadIdx.x % kLanes == 0 && inside) {
        atomicMin(nearest, key);
    }
}

// Turns a panel of dot products into distances of the pairs i < j and writes them to rows i and, mirrored, to rows
// j: a distance is computed once, so the matrix is exactly symmetric. The diagonal is 0. A thread has four
// neighbouring columns of a row at a time, and then four neighbouring rows of a column.
template <int kTile>
__device__ void emit_panel(const DistanceArgs& args, int64_t base, Tile tile, int p, const Sides<kTile>& sides,
                           float* panel) {
    using G = Geometry<kTile>;
    constexpr int kRowLanes = kTile / 4;
    constexpr int kColLanes = 4;
    const int first_row = tile.row * kTile + p * G::kPanel;
    const int first_col = tile.column * kTile;
    float* matrix = args.matrix == nullptr ? nullptr : args.matrix + base * args.stride;
    const bool vectors = args.stride % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;

    const int c = threadIdx.x % kRowLanes * 4;
#pragma unroll
    for (int r = threadIdx.x / kRowLanes; r < G::kPanel; r += G::kThreads / kRowLanes) {
        const int i = first_row + r;
        const int side_row = p * G::kPanel + r;
        float4* at = reinterpret_cast<float4*>(panel + r * G::kPanelStride + c);
        const float4 dots = *at;
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
        if (args.nearest != nullptr) {
            bring_nearer<kRowLanes>(args.nearest + base + i, nearest, i < args.n);
        }
    }
    __syncthreads();
#pragma unroll
    for (int col = threadIdx.x / kColLanes; col < kTile; col += G::kThreads / kColLanes) {
        const int j = first_col + col;
        float nearest = kFar;
#pragma unroll
        for (int r = threadIdx.x % kColLanes * 4; r < G::kPanel; r += 4 * kColLanes) {
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
        if (args.nearest != nullptr) {
            bring_nearer<kColLanes>(args.nearest + base + j, nearest, j < args.n);
        }
    }
}

// Grid (tiles * splits, B): one tile of the upper triangle, or one part of its sums; the block that brings a
// tile's last part finishes the tile.
template <class T, int kTile>
__global__ void __launch_bounds__(Geometry<kTile>::kThreads) distances_kernel(DistanceArgs args) {
    using G = Geometry<kTile>;
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    float* panel = reinterpret_cast<float*>(shared_bytes);
    const int item = blockIdx.y;
    const int part = blockIdx.x % args.splits;
    const int index = blockIdx.x / args.splits;
    const Tile tile = triangle_tile(index);
    const int begin = part * args.split;
    const int end = begin + args.split < args.width ? begin + args.split : args.width;
    const T* tokens = static_cast<const T*>(args.tokens) + static_cast<int64_t>(item) * args.n * args.width;

    typename ProductFor<T, kTile>::type product;
    product.run(TileRows<T>{tokens, args.n, args.width, tile.row * kTile, tile.column * kTile, begin, end},
                shared_bytes);
    const int64_t slot = static_cast<int64_t>(item) * args.tiles + index;
    if (args.splits > 1 && !deliver_part<kTile>(product, args, slot, part, panel)) {
        return;
    }
    __shared__ Sides<kTile> sides;
    const int64_t base = static_cast<int64_t>(item) * args.n;
    sides.load(args, base, tile.row * kTile, tile.column * kTile);
    for (int p = 0; p < G::kPanels; ++p) {
        if (args.splits > 1) {
            gather_parts<kTile>(args, slot, p, panel);
        } else {
            product.store_panel(p, panel);
        }
        __syncthreads();
        emit_panel<kTile>(args, base, tile, p, sides, panel);
        __syncthreads();
    }
}

}  // namespace divprune
