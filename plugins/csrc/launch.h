// Starting kernels with the runtime's own result: a failed launch is reported by the call that made it.

#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "max_min.h"

namespace divprune {

// What divprune_cuda_message returns.
inline thread_local const char* cuda_message = "";

inline int to_status(cudaError_t error) {
    if (error == cudaSuccess) {
        return DIVPRUNE_OK;
    }
    cuda_message = cudaGetErrorString(error);
    return DIVPRUNE_CUDA_ERROR;
}

inline bool misaligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 != 0; }

// Shared memory that a kernel may use without asking.
constexpr std::size_t kFreeSharedBytes = 48 * 1024;

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                   Parameters... arguments) {
    if (shared > kFreeSharedBytes) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared));
        if (error != cudaSuccess) {
            return error;
        }
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace divprune
