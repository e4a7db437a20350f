"""Libraries in CUDA's place that compute nothing, so that ONNX Runtime's own CUDA provider plans graphs without a GPU.

What the provider imports is asked of it; memory is the host's, copies copy, and all else says that it went well. A
capture fails where the environment has ``CAPTURES=fail``.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

SPOKEN = r"""
#include <stdlib.h>
#include <string.h>
#define NEW(name, ...) int name(void** made, ##__VA_ARGS__) { *made = malloc(64); return 0; }
int cudaMalloc(void** made, size_t size) { *made = aligned_alloc(256, (size + 511) / 256 * 256); return !*made; }
int cudaMallocHost(void** made, size_t size) { return cudaMalloc(made, size); }
int cudaHostAlloc(void** made, size_t size, unsigned flags) { return cudaMalloc(made, size); }
int cudaMallocAsync(void** made, size_t size, void* stream) { return cudaMalloc(made, size); }
int cudaFree(void* held) { free(held); return 0; }
int cudaFreeHost(void* held) { free(held); return 0; }
int cudaFreeAsync(void* held, void* stream) { free(held); return 0; }
int cudaMemcpy(void* to, const void* from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* s) { memcpy(to, from, size); return 0; }
int cudaMemset(void* to, int value, size_t size) { memset(to, value, size); return 0; }
int cudaMemsetAsync(void* to, int value, size_t size, void* stream) { memset(to, value, size); return 0; }
int cudaMemGetInfo(size_t* free_, size_t* total) { *free_ = *total = 1ull << 36; return 0; }
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int* value, int which, int device) {
    *value = which == 75 ? 9 : which == 76 ? 0 : which == 16 ? 132 : which == 10 ? 32 : which == 1 ? 1024 : 1;
    return 0;
}
int cudaGetDeviceProperties(char* facts, int device) {
    memset(facts, 0, 1008);
    *(size_t*)(facts + 288) = 1ull << 37;  /* totalGlobalMem */
    *(int*)(facts + 308) = 32;             /* warpSize */
    *(int*)(facts + 320) = 1024;           /* maxThreadsPerBlock */
    *(int*)(facts + 360) = 9;              /* major */
    *(int*)(facts + 384) = 132;            /* multiProcessorCount */
    return 0;
}
int cudaPointerGetAttributes(int* facts, const void* held) { memset(facts, 0, 48); *facts = 2; return 0; }
int cudaRuntimeGetVersion(int* version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int* version) { *version = 13000; return 0; }
const char* cudaGetErrorString(int error) { return "a stand-in says so"; }
const char* cudaGetErrorName(int error) { return "standIn"; }
NEW(cudaStreamCreate) NEW(cudaStreamCreateWithFlags, unsigned flags) NEW(cudaEventCreate)
NEW(cudaEventCreateWithFlags, unsigned flags) NEW(cudaGraphInstantiate, void* graph, unsigned long long flags)
NEW(cublasCreate_v2) NEW(cublasLtCreate)
int cudaStreamIsCapturing(void* stream, int* state) { *state = 0; return 0; }
int cudaStreamEndCapture(void* stream, void** graph) {
    *graph = malloc(64);
    return getenv("CAPTURES") ? 901 : 0;
}
int cublasLtMatmulAlgoGetHeuristic(
    void* a, void* b, void* c, void* d, void* e, void* f, void* g, int most, void* results, int* found) {
    *found = 0;
    return 0;
}
static void* binary;
void** __cudaRegisterFatBinary(void* code) { return &binary; }
"""


def stand_in(provider: Path, folder: Path) -> Path:
    """Compile what ``provider``, the library of ONNX Runtime's CUDA provider, imports of CUDA; return the folder."""
    found = subprocess.run(
        ["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True
    )
    needed = subprocess.run(["readelf", "-d", provider], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"\[(lib(?:cu)\w+\.so\.\d+)\]", needed)
    names: dict[str, set[str]] = defaultdict(set, {library: set() for library in libraries})
    for symbol in (line.split()[-1] for line in found.stdout.splitlines()):
        name, _, version = symbol.partition("@")
        if version in libraries:
            names[version].add(name)
        elif name.startswith("cu"):
            names[
                next(
                    one for one in libraries if one.startswith("libcurand" if "rand" in name else "libcuda.")
                )
            ].add(name)
    # Found by name as it is loaded.
    names["libcuda.so.1"] |= {"cuTensorMapEncodeTiled", "cuGetErrorString"}
    spoken = set(re.findall(r"\b(\w+)\(", SPOKEN)) | set(re.findall(r"NEW\((\w+)", SPOKEN))
    for library, wanted in names.items():
        silent = "".join(f"long {name}() {{ return 0; }}\n" for name in sorted(wanted - spoken))
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text(SPOKEN + silent)
        versions.write_text(f"{library} {{ global: *; }};\n")
        script = [f"-Wl,--version-script,{versions}"] if f"@{library}" in found.stdout else []
        output = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", *script, "-o", str(folder / library)]
        subprocess.run(["gcc", str(source), *output], check=True)
    return folder
