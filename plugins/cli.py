"""``python -m plugins``: build the GPU library and look at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from divprune_edge.console import run

app = typer.Typer(
    help="The GPU kernel of the selectors, as a library and as a TensorRT plugin.",
    no_args_is_help=True,
    add_completion=False,
)

LibraryFolder = Annotated[
    Path | None,
    typer.Option("--library", metavar="DIR", help="Folder of the library.", show_default="the package"),
]


@app.command()
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
    """Compile the library with nvcc; needs no GPU and no torch."""
    from divprune_edge.plugins.build import build as build_library
    from divprune_edge.plugins.record import DEFAULT_FOLDER, EDGE_LLM_OBJECT, LIBRARY
    from divprune_edge.plugins.toolchain import (
        choose_architectures,
        find_compiler,
        find_edge_llm,
        find_headers,
    )

    compiler = find_compiler()
    headers = find_headers(tensorrt_include)
    checkout = find_edge_llm(edge_llm)
    architectures = choose_architectures(arch, compiler)
    folder = output or DEFAULT_FOLDER
    print(f"nvcc {compiler.version} for sm_{', sm_'.join(map(str, architectures))} ...")
    build_library(
        compiler,
        headers,
        architectures,
        folder,
        edge_llm=checkout,
        jobs=jobs or os.cpu_count() or 1,
        show=print if verbose else lambda line: None,
    )
    print(f"{folder / LIBRARY}")
    if headers:
        print(
            f"TensorRT plugin: yes, for TensorRT {headers.version.split('.')[0]} (headers {headers.version})"
        )
    else:
        print("TensorRT plugin: no, because NvInfer.h was not found; --tensorrt-include DIR names its folder")
    if checkout:
        print(f"Edge-LLM pruner: {folder / EDGE_LLM_OBJECT}, for Edge-LLM {checkout.version} and no other")


@app.command()
def info(library: LibraryFolder = None) -> None:
    """Check the built library and show what is known of it."""
    from divprune_edge.plugins import abi
    from divprune_edge.plugins.loader import find_library

    found = find_library(library)
    record = found.record
    abi.load(found.path)
    print(f"{found.path}")
    print(f"version        {record.version} (interface {record.abi})")
    print(f"architectures  sm_{', sm_'.join(map(str, record.architectures))}")
    print(f"CUDA           {record.cuda}")
    print(f"TensorRT       {record.tensorrt or 'not built in'}")
    print(f"Edge-LLM       {record.edge_llm or 'not built'}")
    print(f"sha256         {record.sha256}")


def main() -> NoReturn:
    """Entry point of ``python -m plugins``."""
    run(app, program="python -m plugins")
