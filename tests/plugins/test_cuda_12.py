"""The kernels compile with CUDA 12.6: for Hopper, and for Jetson Orin, where JetPack 6 refuses what CUDA 13 makes.

The compiler is NVRTC from a Python package (``make cuda12``); only the kernels go through it, the host code does not
depend on the version of CUDA.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p, create_string_buffer

import pytest
from plugins_emulation import ROOT, SOURCE

TOOLKIT = ROOT / "build" / "cuda-12.6" / "nvidia"
ELF_ABI_OF_CUDA_12 = 7
# NVRTC brings no standard library; the kernels need these names of it.
STANDARD = {
    b"cstdint": b"""
        typedef signed int int32_t; typedef unsigned int uint32_t; typedef unsigned char uint8_t;
        typedef signed long long int64_t; typedef unsigned long long uint64_t;
        namespace std { using ::int32_t; using ::uint32_t; }
    """,
    b"cstring": b"",
    b"stdint.h": b"",
    b"stdlib.h": b"",
    b"type_traits": b"""
        namespace std {
        template <class A, class B> struct is_same { static constexpr bool value = false; };
        template <class A> struct is_same<A, A> { static constexpr bool value = true; };
        template <bool c, class A, class B> struct conditional { using type = A; };
        template <class A, class B> struct conditional<false, A, B> { using type = B; };
        template <bool c, class A, class B> using conditional_t = typename conditional<c, A, B>::type;
        }
    """,
}
HEADERS = ("append_rows.cuh", "distances.cuh", "gather.cuh", "matrix_free.cuh", "norms.cuh", "pick.cuh")
TYPES = ("float", "__half", "__nv_bfloat16")
RULES = ("divprune::Rule::kMaxMin", "divprune::Rule::kMinSum")
KERNELS = [
    *(f"divprune::norms_kernel<{t}>" for t in TYPES),
    *(f"divprune::distances_kernel<{t}, 64>" for t in TYPES),
    *(f"divprune::distances_kernel<{t}, 128>" for t in TYPES[1:]),
    *(f"divprune::pick_kernel<{rule}, {vectors}>" for rule in RULES for vectors in (1, 2, 4, 8)),
    *(f"divprune::first_kernel<{rule}>" for rule in RULES),
    *(f"divprune::step_kernel<{t}, {rule}>" for t in TYPES for rule in RULES),
    *(f"divprune::append_kernel<{vector}>" for vector in ("uint4", "uint32_t")),
    *(f"divprune::{name}_kernel" for name in ("adopt", "gather", "sort")),
]
# What nvcc knows of the device's runtime.
LAUNCHES = b"""
    __device__ inline void cudaTriggerProgrammaticLaunchCompletion() {
        asm volatile("griddepcontrol.launch_dependents;");
    }
    __device__ inline void cudaGridDependencySynchronize() { asm volatile("griddepcontrol.wait;"); }
"""
HOPPER_HEADERS = ("distances_wgmma.cuh",)
HOPPER_KERNELS = [f"divprune::wgmma_distances_kernel<{t}>" for t in TYPES[1:]]


def load_nvrtc() -> ctypes.CDLL:
    folder = TOOLKIT / "cuda_nvrtc" / "lib"
    if not folder.is_dir():
        pytest.skip(f"no CUDA 12.6 in {TOOLKIT.relative_to(ROOT)} (make cuda12)")
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / "libnvrtc.so.12"))


@pytest.mark.slow
def test_every_kernel_compiles_for_orin() -> None:
    compile_kernels("sm_87", HEADERS, KERNELS)


@pytest.mark.slow
def test_what_only_hopper_has_compiles() -> None:
    said = compile_kernels("sm_90a", HOPPER_HEADERS, HOPPER_KERNELS)
    assert "serialized" not in said


def compile_kernels(architecture: str, headers: tuple[str, ...], kernels: list[str]) -> str:
    """Compile kernels to a cubin of CUDA 12 that holds them all; return what the compiler and ptxas say."""
    nvrtc = load_nvrtc()
    source = LAUNCHES + "".join(f'#include "{header}"\n' for header in headers).encode()
    program = c_void_p()
    names, contents = (c_char_p * len(STANDARD))(*STANDARD), (c_char_p * len(STANDARD))(*STANDARD.values())
    assert (
        nvrtc.nvrtcCreateProgram(byref(program), source, b"kernels.cu", len(STANDARD), contents, names) == 0
    )
    for kernel in kernels:
        assert nvrtc.nvrtcAddNameExpression(program, kernel.encode()) == 0
    options = [
        "--std=c++17",
        f"--gpu-architecture={architecture}",
        "--ptxas-options=-v",
        f"--include-path={SOURCE}",
        f"--include-path={TOOLKIT / 'cuda_runtime' / 'include'}",
        f"--include-path={TOOLKIT / 'cuda_nvcc' / 'include'}",
        # The one function for the host in the headers is of no use here, but must be parsed.
        "--device-as-default-execution-space",
    ]
    encoded = (c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    said = log_of(nvrtc, program)
    assert status == 0, said
    size = c_size_t()
    assert nvrtc.nvrtcGetCUBINSize(program, byref(size)) == 0
    cubin = create_string_buffer(size.value)
    assert nvrtc.nvrtcGetCUBIN(program, cubin) == 0
    assert cubin.raw[:4] == b"\x7fELF"
    assert cubin.raw[8] == ELF_ABI_OF_CUDA_12
    lowered = c_char_p()
    for kernel in kernels:
        assert nvrtc.nvrtcGetLoweredName(program, kernel.encode(), byref(lowered)) == 0
        assert lowered.value is not None
        assert lowered.value in cubin.raw
    return said


def log_of(nvrtc: ctypes.CDLL, program: c_void_p) -> str:
    size = c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, byref(size))
    log = create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode()


def version_of(nvrtc: ctypes.CDLL) -> tuple[int, int]:
    major, minor = c_int(), c_int()
    nvrtc.nvrtcVersion(byref(major), byref(minor))
    return major.value, minor.value


def test_it_is_that_version() -> None:
    assert version_of(load_nvrtc()) == (12, 6)
