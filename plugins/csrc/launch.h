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

// How a kernel is started.
struct Shape {
    dim3 grid;
    int threads;
    std::size_t shared = 0;
    int cluster = 1;        // blocks that work together; more than one needs sm_90
    bool overlaps = false;  // it waits for the launch before it by itself; needs sm_90
};

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream, Parameters... arguments) {
    if (shape.shared > kFreeSharedBytes) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared));
        if (error != cudaSuccess) {
            return error;
        }
    }
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared;
    config.stream = stream;
    config.attrs = attributes;
    if (shape.cluster > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
        attribute.val.clusterDim.y = 1;
        attribute.val.clusterDim.z = 1;
    }
    if (shape.overlaps) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace divprune
