"""What a selection should take on a GPU that is not at hand: bytes, multiply-adds and steps, over what is known of it.

Nothing here is measured but what the table calls so. The plan is the library's own (``divprune_plan``): tiles, blocks
and the cycles that it was chosen by. To these come the memory beyond the L2 cache, the picks, whose step is an H200's
in cycles, the copies, and the gaps between launches. ``--occupancy`` compiles the kernels and says how many blocks a
multiprocessor holds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.selector_forms import SIZES, Size
from divprune_edge.files import write_whole
from divprune_edge.plugins import abi
from divprune_edge.plugins.build import SOURCE
from divprune_edge.plugins.loader import find_library
from divprune_edge.plugins.toolchain import find_compiler


@dataclass(frozen=True)
class Gpu:
    """Of its data sheet: clock in GHz, memory in GB/s, L2 cache in MB."""

    name: str
    architecture: int
    multiprocessors: int
    clock: float
    memory: float
    l2: float


GPUS = (
    Gpu("H200", 90, 132, 1.98, 4007, 50),  # memory as copies measured it
    Gpu("AGX Orin 64GB", 87, 16, 1.3, 204.8, 4),
    Gpu("Orin NX 16GB", 87, 8, 0.918, 102.4, 2),
    Gpu("Orin Nano 8GB", 87, 8, 1.02, 102.4, 2),
    Gpu("A100", 80, 108, 1.41, 1555, 40),
    Gpu("L4", 89, 58, 2.04, 300, 48),
    Gpu("RTX 4090", 89, 128, 2.52, 1008, 72),
)
MEASURED = {
    "float16": {(576, 4096): 106, (576, 1024): 78, (1152, 4096): 152, (2880, 4096): 484, (6272, 3584): 1622},
    "float32": {(576, 4096): 178},
}
"""Microseconds of the four launches before on one H200, of which the next constants come as well (docs/plugin.md)."""
STEP_CYCLES = 1050
"""Of a pick at N = 576: a row from the L2 cache, two reductions, a barrier; measured, 0.53 µs."""
ROW_BYTES = 22
"""Bytes of a row that a block brings in a cycle beyond that; measured, between N = 576 and 2880."""
MISS_US = 0.36
"""More for a row that is not in the L2 cache; measured, what is left at N = 6272. On Orin assumed to be as long."""
CLUSTER_CYCLES = 320
"""More for a step of a cluster than for one of a block: stores to other blocks, and waiting for theirs; assumed."""
LAUNCH_US = 2.5
"""Of each launch in a graph, beside its kernel; measured, 1.7 to 3.7."""
SHARED_BYTES = 128
"""Of shared memory, that a multiprocessor moves in a cycle; data sheets, of Turing half."""
HOPPER = 90
KINDS = {"__half": "float16", "__nv_bfloat16": "bfloat16", "f": "float32"}
"""Types of tokens, by how a kernel's name has them."""
COLUMNS = 8
"""Of tiles that are walked through side by side (``kTileColumns``)."""
RESIDENT = {64: 3, 128: 2, 256: 1}
"""Blocks that a multiprocessor holds, by the columns that they make (``--occupancy``): an Orin's, and by warpgroups."""


@dataclass(frozen=True)
class Forecast:
    """Microseconds, and what they come from: MB that multiprocessors read and that memory moves, GFLOP."""

    gpu: str
    product: str
    size: str
    dtype: str
    tile: int
    columns: int
    parts: int
    shards: int
    read_mb: float
    memory_mb: float
    gflop: float
    distances: float
    picks: float
    copies: float
    total: float
    before: float | None


def forecast(library: ctypes.CDLL, gpu: Gpu, size: Size, dtype: str, product: str = "tuned") -> Forecast:
    """Return what the model says of one selection; the product is one of ``abi.PRODUCTS``."""
    n, k, d = size.candidates, size.keep, size.width
    element = 4 if dtype == "float32" else 2
    problem = abi.Problem(1, n, d, k, abi.DTYPES[dtype], abi.PRODUCTS[product], 2**40)
    plan = abi.plan(library, problem, gpu.architecture, gpu.multiprocessors)
    matrix, row = 4 * n * n, d * element
    moved = rows_from_memory(gpu, plan, n, row) * row + matrix
    cycles = max(plan.cycles, shared_cycles(gpu, plan, d) if dtype != "float32" else 0)
    distances = max(cycles / gpu.clock / 1e3, moved / gpu.memory / 1e3)
    step = STEP_CYCLES / gpu.clock / 1e3 + 4 * n / plan.shards / ROW_BYTES / gpu.clock / 1e3
    step += MISS_US if matrix > gpu.l2 * 1e6 else 0
    step += CLUSTER_CYCLES / gpu.clock / 1e3 if plan.shards > 1 else 0
    picks, copies = k * step, 1 + 2 * k * row / gpu.memory / 1e3
    return Forecast(
        gpu=gpu.name,
        product=next(name for name, value in abi.PRODUCTS.items() if value == plan.product),
        size=str(size),
        dtype=dtype,
        tile=plan.tile,
        columns=plan.columns,
        parts=plan.parts,
        shards=plan.shards,
        read_mb=plan.tiles * 2 * plan.tile * row / 1e6,
        memory_mb=moved / 1e6,
        gflop=2e-9 * plan.tiles * plan.tile * plan.columns * d,
        distances=distances,
        picks=picks,
        copies=copies,
        total=distances + picks + copies + abi.launch_count(library, problem) * LAUNCH_US,
        before=MEASURED[dtype].get((n, d)) if gpu is GPUS[0] else None,
    )


def products(gpu: Gpu, dtype: str) -> tuple[str, ...]:
    """Return the products that a GPU has for tokens of this type."""
    return ("tuned", "wgmma") if gpu.architecture == HOPPER and dtype != "float32" else ("tuned",)


def shared_cycles(gpu: Gpu, plan: abi.Spread, width: int) -> float:
    """Return the cycles that multiprocessors move 16-bit tokens to and from shared memory.

    For each value of the width both sides arrive, squares read two tiles' rows, and warps read what they multiply: of
    ``mma`` two rows of warps, each 32 columns wide; of ``wgmma`` two groups of 64 rows.
    """
    warps = plan.tile // 16
    multiplied = 2 * (64 + plan.columns) if plan.columns > plan.tile else warps * (plan.tile // 2 + 32)
    values = multiplied + plan.tile + plan.columns + 2 * plan.tile
    rounds = -(-plan.tiles * plan.parts // gpu.multiprocessors)
    return rounds * -(-width // plan.parts) * values * 2 / SHARED_BYTES


def rows_from_memory(gpu: Gpu, plan: abi.Spread, n: int, row: int) -> int:
    """Return the rows that come from memory.

    All of them once where they stay in the L2 cache, or where all tiles are multiplied side by side; else, with every
    wave of tiles, those of its eight columns and of the rows that these meet. What a pair of blocks makes is as high as
    it is wide.
    """
    pair = plan.columns // plan.tile
    at_once = max(1, gpu.multiprocessors * RESIDENT[plan.columns] // (plan.parts * pair))
    waves = -(-plan.tiles // pair // at_once)
    if n * row <= gpu.l2 * 1e6 or waves == 1:
        return n
    return waves * min(n, plan.columns * (COLUMNS + -(-at_once // COLUMNS)))


def table(found: Sequence[Forecast]) -> Iterator[str]:
    """Yield forecasts in Markdown, beside what was measured before."""
    yield (
        "| GPU | N → K, D | tile, its blocks, those of the picks | multiprocessors read | memory | GFLOP | distances | "
        "picks | copies | total, µs | four launches before, measured (over this) |"
    )
    yield f"|---|---|---|{'---:|' * 8}"
    for one in found:
        cells = [
            one.gpu if one.product != "wgmma" else f"{one.gpu}, `wgmma`",
            one.size.replace("->", " → ").replace(" x ", ", "),
            f"{one.tile if one.columns == one.tile else f'{one.tile} × {one.columns}'}, {one.parts}, {one.shards}",
        ]
        cells += [f"{one.read_mb:,.0f} MB", f"{one.memory_mb:,.0f} MB", f"{one.gflop:.1f}"]
        cells += [f"{us:,.0f}" for us in (one.distances, one.picks, one.copies, one.total)]
        ratio = "" if one.before is None else f"{one.before:,} ({one.before / one.total:.1f}×)"
        yield f"| {' | '.join([*cells, ratio or '–'])} |"


def occupancy(architecture: int) -> Iterator[str]:
    """Yield what a multiprocessor holds of each kernel, by the compiler's registers and shared memory, in Markdown."""
    registers, shared = 65536, {75: 64, 80: 164, 87: 164, 90: 228, 100: 228}
    said = _ptxas("max_min.cu", str(architecture))
    if architecture == HOPPER:
        said += _ptxas("hopper.cu", f"{architecture}a")
    yield "| kernel | registers | shared memory | threads | blocks | warps |"
    yield f"|---|{'---:|' * 5}"
    pattern = (
        r"function '\w*?\d(wgmma_)?distances_kernelI(\w*?)E{2,3}v\w+' for"
        r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    for warpgroups, kind, used, fixed in re.findall(pattern, said.replace("\n", " ")):
        tile = 128 if warpgroups else int(re.search(r"Li(\d+)$", kind).group(1))  # type: ignore[union-attr]
        # Four or three steps of 32 values of both sides' rows, 8 more a row; of float32 two of 16, 4 more a column; by
        # warpgroups four of 64 of three sides, and what aligns them. Then the distances, 4 more a row.
        steps = (4 if tile == 64 else 3) * 2 * tile * 80
        if kind.startswith("f"):
            steps = 2 * 2 * 16 * (tile + 4) * 4
        if warpgroups:
            steps = 4 * 3 * tile * 128 + 1024
        dynamic = max(steps, tile * (tile + 4) * 4)
        threads, whole = 2 * tile, dynamic + int(fixed or 26 * tile)
        by_registers = registers // (-(-int(used) // 8) * 8 * threads)
        by_memory = shared.get(architecture, 100) * 1024 // (whole + 1024)
        blocks = min(by_registers, by_memory)
        name = next(name for letter, name in KINDS.items() if letter in kind)
        size = f"{tile} × 256, `wgmma`" if warpgroups else str(tile)
        yield f"| {name}, tile {size} | {used} | {whole:,} | {threads} | {blocks} | {blocks * threads // 32} |"


def _ptxas(name: str, architecture: str) -> str:
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", target, "-c", "-o"]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(find_compiler().path), *options, f"{folder}/kernels.o", str(SOURCE / "csrc" / name)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main(arguments: list[str] | None = None) -> None:
    """Print the forecasts, or what a multiprocessor holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="instead of the one that was built")
    parser.add_argument("--dtype", choices=sorted(abi.DTYPES), default="float16")
    parser.add_argument("--gpu", default="", help="only those whose name contains this")
    parser.add_argument("--occupancy", type=int, metavar="87", help="of a compute capability; needs nvcc")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.occupancy is not None:
        print("\n".join(occupancy(options.occupancy)))
        return
    library = abi.load(options.library or find_library().path)
    gpus = [gpu for gpu in GPUS if options.gpu in gpu.name]
    found = [
        forecast(library, gpu, size, options.dtype, product)
        for gpu in gpus
        for product in products(gpu, options.dtype)
        for size in SIZES[:5]
    ]
    print("\n".join(table(found)))
    if options.json:
        write_whole(options.json, json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
