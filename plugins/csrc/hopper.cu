#include "hopper.h"

#include <cuda.h>

#include <atomic>

#include "distances_wgmma.cuh"

namespace divprune {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);
// The driver that has it first.
constexpr unsigned kEncodeSince = 12000;

// The driver's function is asked of the CUDA runtime: so nothing links to the driver.
cudaError_t find_encode(Encode* encode) {
    static std::atomic<Encode> known{nullptr};
    *encode = known.load(std::memory_order_relaxed);
    if (*encode != nullptr) {
        return cudaSuccess;
    }
    void* found = nullptr;
    cudaDriverEntryPointQueryResult answer{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kEncodeSince,
                                                               cudaEnableDefault, &answer);
    if (error != cudaSuccess || answer != cudaDriverEntryPointSuccess || found == nullptr) {
        return error != cudaSuccess ? error : cudaErrorNotSupported;
    }
    *encode = reinterpret_cast<Encode>(found);
    known.store(*encode, std::memory_order_relaxed);
    return cudaSuccess;
}

// Tokens [B, N, D] in boxes of one side of a pair's tiles and 128 bytes of each row; what lies outside reads as zero.
cudaError_t describe(const divprune_problem& problem, const void* tokens, CUtensorMap* map) {
    Encode encode = nullptr;
    const cudaError_t error = find_encode(&encode);
    if (error != cudaSuccess) {
        return error;
    }
    const cuuint64_t row_bytes = 2ull * static_cast<cuuint64_t>(problem.width);
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(problem.width), static_cast<cuuint64_t>(problem.candidates),
                                static_cast<cuuint64_t>(problem.batch)};
    const cuuint64_t strides[] = {row_bytes, row_bytes * static_cast<cuuint64_t>(problem.candidates)};
    const cuuint32_t box[] = {kRowBytes / 2, kPairTile, 1};
    const cuuint32_t steps[] = {1, 1, 1};
    const CUtensorMapDataType type =
        problem.dtype == DIVPRUNE_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const CUresult result = encode(map, type, 3, const_cast<void*>(tokens), sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t wgmma_distances(const divprune_problem& problem, const DistanceArgs& args, int blocks, int cluster,
                            cudaStream_t stream) {
    CUtensorMap map{};
    const cudaError_t error = describe(problem, args.tokens, &map);
    if (error != cudaSuccess) {
        return error;
    }
    Shape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(problem.batch)), kPairThreads};
    shape.shared = kPairSharedBytes;
    shape.cluster = cluster;
    return problem.dtype == DIVPRUNE_FLOAT16 ? launch(wgmma_distances_kernel<__half>, shape, stream, map, args)
                                             : launch(wgmma_distances_kernel<__nv_bfloat16>, shape, stream, map, args);
}

}  // namespace divprune
