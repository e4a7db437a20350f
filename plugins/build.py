"""Building the libraries with CMake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.plugins.record import (
    ABI_VERSION,
    EDGE_LLM_OBJECT,
    LIBRARY,
    OPERATORS,
    LibraryRecord,
    record_of,
    sha256,
)
from divprune_edge.plugins.toolchain import (
    EDGE_LLM_VARIABLE,
    Compiler,
    Headers,
    OnnxRuntimeHeaders,
    find_cmake,
)
from divprune_edge.scratch import scratch
from divprune_edge.version import __version__

SOURCE = Path(__file__).resolve().parent
_BUILT_OBJECT = Path("CMakeFiles/divprune_edge_llm.dir/csrc/edge_llm/pruner.cpp.o")


def build(
    compiler: Compiler | None,
    headers: Headers | None,
    architectures: tuple[int, ...],
    output: Path,
    *,
    edge_llm: Headers | None = None,
    onnxruntime: OnnxRuntimeHeaders | None = None,
    jobs: int = 1,
    show: Callable[[str], None] = lambda line: None,
) -> None:
    """Build the libraries into ``output``, each with its record beside it.

    Args:
        compiler: nvcc; None builds the operators of ONNX Runtime for the CPU alone.
        headers: TensorRT's headers, or None for a library without the wrapper.
        architectures: compute capabilities without the dot; the newest is also kept as PTX for GPUs after it.
        output: folder; older libraries there are replaced once the new ones are complete.
        edge_llm: checkout of TensorRT Edge-LLM, for which an object is put beside the library; None: no object.
        onnxruntime: ONNX Runtime's header, or None to leave its operators out.
        jobs: compilers at a time.
        show: called with each line of the build's output.

    Raises:
        UserError: ``edge_llm`` without ``headers``; cmake is missing; ``output`` cannot be written, or another process
            is building there.
        DivpruneError: the build failed; the compiler's first error is in the message.
    """
    if edge_llm and not headers:
        raise UserError(
            "TensorRT Edge-LLM's headers need those of TensorRT: name the folder of NvInfer.h with --tensorrt-include "
            f"(or leave --edge-llm out, and {EDGE_LLM_VARIABLE} unset).",
            code="edge-llm-without-tensorrt",
        )
    cmake = find_cmake()
    busy = f"Another process is building in '{output}': wait for it, or choose another folder with --output."
    stack = ExitStack()
    try:
        output.mkdir(parents=True, exist_ok=True)
        partial = stack.enter_context(scratch(output, "build", busy=busy))
    except OSError as error:
        raise UserError(
            f"'{output}' cannot be written ({error.strerror}): choose another folder with --output.",
            code="output-unwritable",
        ) from error
    with stack:
        folder = str(partial)
        _run(_configure(cmake, compiler, headers, edge_llm, onnxruntime, architectures, folder, jobs), show)
        _run([str(cmake), "--build", folder, "--parallel", str(jobs)], show)
        facts = LibraryRecord(
            version=__version__,
            abi=ABI_VERSION,
            sha256="",
            architectures=architectures,
            cuda=compiler.version if compiler else None,
            tensorrt=None,
        )
        if compiler is not None:
            (output / EDGE_LLM_OBJECT).unlink(missing_ok=True)
            if edge_llm:
                os.replace(partial / _BUILT_OBJECT, output / EDGE_LLM_OBJECT)  # noqa: PTH105
            tensorrt, edge = (found.version if found else None for found in (headers, edge_llm))
            _put(partial / LIBRARY, output, replace(facts, tensorrt=tensorrt, edge_llm=edge))
        if onnxruntime is not None:
            _put(partial / OPERATORS, output, replace(facts, onnxruntime=onnxruntime.api))


def _put(built: Path, output: Path, facts: LibraryRecord) -> None:
    library = output / built.name
    facts = replace(facts, sha256=sha256(built))
    # Library and record are checked against each other, so a build that ends between the two is noticed.
    record_of(library).unlink(missing_ok=True)
    os.replace(built, library)  # noqa: PTH105 - the atomic one
    facts.write(output, built.name)


def _configure(
    cmake: Path,
    compiler: Compiler | None,
    headers: Headers | None,
    edge_llm: Headers | None,
    onnxruntime: OnnxRuntimeHeaders | None,
    architectures: tuple[int, ...],
    folder: str,
    jobs: int,
) -> list[str]:
    return [
        str(cmake),
        "-S",
        str(SOURCE),
        "-B",
        folder,
        "-DCMAKE_BUILD_TYPE=Release",
        *(_cuda(compiler, architectures, jobs) if compiler else ["-DDIVPRUNE_CUDA=OFF"]),
        f"-DDIVPRUNE_VERSION={__version__}",
        f"-DDIVPRUNE_TENSORRT_INCLUDE_DIR={headers.folder.resolve() if headers else ''}",
        f"-DDIVPRUNE_EDGE_LLM_DIR={edge_llm.folder.resolve() if edge_llm else ''}",
        f"-DDIVPRUNE_ONNXRUNTIME_INCLUDE_DIR={onnxruntime.folder.resolve() if onnxruntime else ''}",
    ]


def _cuda(compiler: Compiler, architectures: tuple[int, ...], jobs: int) -> list[str]:
    *older, newest = (str(architecture) for architecture in architectures)
    return [
        f"-DCMAKE_CUDA_COMPILER={compiler.path}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join([*(f'{a}-real' for a in older), newest])}",
        # One source file holds all kernels: nvcc can compile it for several architectures at a time.
        f"-DCMAKE_CUDA_FLAGS=--threads={jobs}",
    ]


def _run(command: list[str], show: Callable[[str], None]) -> None:
    lines = []
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise UserError(
            f"'{command[0]}' does not start ({error.strerror}).", code="build-tool-not-starting"
        ) from error
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            show(lines[-1])
    finally:
        if sys.exc_info()[0] is not None:
            process.terminate()
        process.wait()
    if process.returncode != 0:
        errors = [line for line in lines if "error" in line.lower()]
        reason = next(iter(errors), lines[-1] if lines else "no output").strip()
        raise DivpruneError(f"The build failed: {reason} (--verbose shows everything).", code="build-failed")
