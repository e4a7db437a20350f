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

// Adds this part's sums to the workspace; true in every thread of the block that brought the last part.
template <int kTile, class Product>
__device__ bool deliver_part(const Product& product, const DistanceArgs& args, int64_t tile, int part, float* panel) {
    using G = Geometry<kTile>;
    __shared__ bool last;
    float* mine = args.partials + (tile * args.splits + part) * kTile * kTile;
    for (int p = 0; p < G::kPanels; ++p) {
        product.store_panel(p, panel);
        __syncthreads();
        for (int i = threadIdx.x; i < G::kPanel * kTile; i += G::kThreads) {
            mine[p * G::kPanel * kTile + i] = panel[i / kTile * G::kPanelStride + i % kTile];
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

// Sums the parts of one panel, always in the same order, whichever block came last.
template <int kTile>
__device__ void gather_parts(const DistanceArgs& args, int64_t tile, int p, float* panel) {
    using G = Geometry<kTile>;
    const float* parts = args.partials + tile * args.splits * kTile * kTile + p * G::kPanel * kTile;
    for (int i = threadIdx.x; i < G::kPanel * kTile; i += G::kThreads) {
        float sum = 0.0f;
        for (int part = 0; part < args.splits; ++part) {
            sum += __ldcg(parts + static_cast<int64_t>(part) * kTile * kTile + i);
        }
        panel[i / kTile * G::kPanelStride + i % kTile] = sum;
    }
}

__device__ __forceinline__ void bring_nearer(uint32_t* nearest, float distance) {
    const uint32_t key = warp_min(ordered(distance));
    if (threadIdx.x % kWarp == 0) {
        atomicMin(nearest, key);
    }
}

// Turns a panel of dot products into distances of the pairs i < j and writes them to rows i and, mirrored, to rows
// j: a distance is computed once, so the matrix is exactly symmetric. The diagonal is 0.
template <int kTile>
__device__ void emit_panel(const DistanceArgs& args, int item, int first_row, int first_col, float* panel) {
    using G = Geometry<kTile>;
    const int lane = threadIdx.x % kWarp;
    const int64_t base = static_cast<int64_t>(item) * args.n;
    const float* norms = args.norms + base;
    const uint8_t* valid = args.valid == nullptr ? nullptr : args.valid + base;
    float* matrix = args.matrix == nullptr ? nullptr : args.matrix + base * args.stride;

    for (int r = threadIdx.x / kWarp; r < G::kPanel; r += G::kWarps) {
        const int i = first_row + r;
        if (i >= args.n) {
            break;
        }
        const bool row_valid = row_is_valid(valid, i);
        float nearest = kFar;
        for (int c = lane; c < kTile; c += kWarp) {
            const int j = first_col + c;
            if (j >= args.n || j < i) {
                continue;
            }
            float distance = 0.0f;
            if (j > i) {
                distance = cosine_distance(panel[r * G::kPanelStride + c], norms[i], norms[j]);
                panel[r * G::kPanelStride + c] = distance;
                if (row_valid && row_is_valid(valid, j)) {
                    nearest = accumulate<Rule::kMaxMin>(nearest, distance);
                }
            }
            if (matrix != nullptr) {
                matrix[static_cast<int64_t>(i) * args.stride + j] = distance;
            }
        }
        if (args.nearest != nullptr) {
            bring_nearer(args.nearest + base + i, nearest);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x / kWarp; c < kTile; c += G::kWarps) {
        const int j = first_col + c;
        if (j >= args.n) {
            break;
        }
        const bool col_valid = row_is_valid(valid, j);
        float nearest = kFar;
        for (int r = lane; r < G::kPanel; r += kWarp) {
            const int i = first_row + r;
            if (i >= j) {
                continue;
            }
            const float distance = panel[r * G::kPanelStride + c];
            if (col_valid && row_is_valid(valid, i)) {
                nearest = accumulate<Rule::kMaxMin>(nearest, distance);
            }
            if (matrix != nullptr) {
                matrix[static_cast<int64_t>(j) * args.stride + i] = distance;
            }
        }
        if (args.nearest != nullptr) {
            bring_nearer(args.nearest + base + j, nearest);
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
    for (int p = 0; p < G::kPanels; ++p) {
        if (args.splits > 1) {
            gather_parts<kTile>(args, slot, p, panel);
        } else {
            product.store_panel(p, panel);
        }
        __syncthreads();
        emit_panel<kTile>(args, item, tile.row * kTile + p * G::kPanel, tile.column * kTile, panel);
        __syncthreads();
    }
}

}  // namespace divprune
