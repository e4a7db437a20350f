"""``python -m plugins``: build the libraries and look at them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from divprune_edge.commands import application
from divprune_edge.console import run

app = application(
    {"build": f"{__name__}:build", "info": f"{__name__}:info"},
    help="The kernels of the selectors: for GPUs, as a TensorRT plugin, as operators of ONNX Runtime.",
)

LibraryFolder = Annotated[
    Path | None,
    typer.Option("--library", metavar="DIR", help="Folder of the libraries.", show_default="the package"),
]


def build(
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of NvInfer.h. Without it, TENSORRT_INCLUDE_DIR or where JetPack and apt put it; "
            "without any, only the C library is built.",
        ),
    ] = None,
    edge_llm: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Checkout of TensorRT Edge-LLM, to build the pruner for it, too. Without it, EDGE_LLM_DIR.",
        ),
    ] = None,
    onnxruntime_include: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of onnxruntime_c_api.h, from ONNX Runtime's release archive or repository. Without it, "
            "ONNXRUNTIME_INCLUDE_DIR or where packages put it; without any, its operators are not built.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Compute capabilities such as 87,90.",
            show_default="this machine's GPUs, else all of nvcc's",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the library.", show_default="where the runtime looks for it"
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at a time.", show_default="one a processor")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the compiler's output.")] = False,
) -> None:
    """Compile the libraries; needs no GPU and no torch, and for the CPU's operators alone no nvcc."""
    from divprune_edge.plugins.build import build as build_libraries
    from divprune_edge.plugins.record import DEFAULT_FOLDER, EDGE_LLM_OBJECT, LIBRARY, OPERATORS
    from divprune_edge.plugins.toolchain import (
        Compiler,
        choose_architectures,
        find_compiler,
        find_edge_llm,
        find_headers,
        find_onnxruntime,
        has_compiler,
    )

    onnxruntime = find_onnxruntime(onnxruntime_include)
    headers = find_headers(tensorrt_include)
    checkout = find_edge_llm(edge_llm)
    compiler: Compiler | None = None
    architectures: tuple[int, ...] = ()
    if onnxruntime is None or tensorrt_include or checkout or arch or has_compiler():
        compiler = find_compiler()
        architectures = choose_architectures(arch, compiler)
        print(f"nvcc {compiler.version} for sm_{', sm_'.join(map(str, architectures))} ...")
    folder = output or DEFAULT_FOLDER
    build_libraries(
        compiler,
        headers,
        architectures,
        folder,
        edge_llm=checkout,
        onnxruntime=onnxruntime,
        jobs=jobs or os.cpu_count() or 1,
        show=print if verbose else lambda line: None,
    )
    if compiler is None:
        print("Kernels for a GPU: no, because nvcc was not found")
    else:
        print(f"{folder / LIBRARY}")
        if headers:
            major = headers.version.split(".")[0]
            print(f"TensorRT plugin: yes, for TensorRT {major} (headers {headers.version})")
        else:
            print(
                "TensorRT plugin: no, because NvInfer.h was not found; --tensorrt-include DIR names its folder"
            )
    if checkout:
        print(f"Edge-LLM pruner: {folder / EDGE_LLM_OBJECT}, for Edge-LLM {checkout.version} and no other")
    if onnxruntime:
        print(f"{folder / OPERATORS}")
        print(f"ONNX Runtime operators: yes, for CPU{' and CUDA' if compiler else ''}")
    else:
        print(
            "ONNX Runtime operators: no, because onnxruntime_c_api.h was not found; --onnxruntime-include DIR names "
            "its folder"
        )


def info(library: LibraryFolder = None) -> None:
    """Check the built libraries and show what is known of them."""
    from divprune_edge.plugins import abi
    from divprune_edge.plugins.loader import Library, find_library, find_operators
    from divprune_edge.plugins.record import DEFAULT_FOLDER, LIBRARY

    operators = find_operators(library)
    found: list[Library] = [operators] if operators else []
    if operators is None or ((library or DEFAULT_FOLDER) / LIBRARY).is_file():
        found.insert(0, find_library(library))
        abi.load(found[0].path)
    for one in found:
        record = one.record
        print(f"{one.path}")
        print(f"version        {record.version} (interface {record.abi})")
        print(f"architectures  {', '.join(f'sm_{a}' for a in record.architectures) or 'CPU alone'}")
        print(f"CUDA           {record.cuda or 'not built in'}")
        if one is operators:
            print(f"ONNX Runtime   1.{record.onnxruntime}")
        else:
            print(f"TensorRT       {record.tensorrt or 'not built in'}")
            print(f"Edge-LLM       {record.edge_llm or 'not built'}")
        print(f"sha256         {record.sha256}")


def main() -> NoReturn:
    """Entry point of ``python -m plugins``."""
    run(app, program="python -m plugins")
