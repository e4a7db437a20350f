// The few functions of the CUDA runtime that the plugin's host code uses, over the emulator.

#pragma once

#include "cuda.h"

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaLaunchAttributeID {
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        dim3 clusterDim;
        int programmaticStreamSerializationAllowed;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

struct cudaFuncAttributes {
    int ptxVersion;
    int binaryVersion;
};

inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }

// The number of the device stands for how many multiprocessors it has.
inline cudaError_t cudaGetDevice(int* device) {
    *device = emulator::device;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    *value = device == 0 ? 132 : device == 1 ? 16 : 2;
    return cudaSuccess;
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    attributes->ptxVersion = attributes->binaryVersion = __CUDA_ARCH__ / 10;
    return cudaSuccess;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
    const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
    emulator::allow_shared(kernel, static_cast<std::size_t>(bytes));
    return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
    if (config->dynamicSmemBytes > emulator::allowed_shared(reinterpret_cast<const void*>(kernel))) {
        return cudaErrorInvalidValue;
    }
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        const cudaLaunchAttribute& attribute = config->attrs[i];
        emulator::require(__CUDA_ARCH__ >= 900, "an attribute of a launch needs sm_90");
        if (attribute.id == cudaLaunchAttributeClusterDimension) {
            const dim3 shape = attribute.val.clusterDim;
            emulator::require(shape.y == 1 && shape.z == 1, "clusters of one dimension are emulated");
            cluster = shape.x;
        }
    }
    ++emulator::launches;
    emulator::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes, cluster,
                       [&] { kernel(arguments...); });
    return cudaSuccess;
}
