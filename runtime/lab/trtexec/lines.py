"""trtexec command lines: one that builds each engine, and one that measures each of its optimisation profiles."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import TensorInfo
from divprune_edge.models.profiles import is_language
from divprune_edge.runtime.engines.graphs import Graph
from divprune_edge.runtime.lab.trtexec.options import (
    attention_options,
    build_options,
    measure_options,
    plugin_options,
)

CACHE, CACHES = "past_key_values.", "past_key_values.*"
"""What the names of a cache's inputs begin with, and the pattern that stands for all of them in trtexec."""
REPEATS = ("--warmUp=500", "--iterations=100", "--duration=0", "--avgRuns=10")
"""Half a second of warm-up, then a hundred runs however long they take."""
_SPECIAL = ",:'"


@dataclass(frozen=True)
class Line:
    """One command: what it is for, the arguments of trtexec, and the files that must be there before."""

    title: str
    arguments: tuple[str, ...]

    def text(self, program: str = "trtexec") -> str:
        """Return it as a line for a shell."""
        return shlex.join([program, *self.arguments])


@dataclass(frozen=True)
class Stage:
    """A stage that is measured: one optimisation profile of an engine with one set of inputs.

    ``inputs`` is input -> values; a name may be :data:`CACHES`, whose one array serves every input of the cache.
    ``cuda_graph`` says that the runtime launches the stage as one CUDA graph.
    """

    name: str
    engine: str
    profile: int
    inputs: Mapping[str, npt.NDArray[Any]]
    cuda_graph: bool


@dataclass(frozen=True)
class Files:
    """Where everything of one run of commands lies."""

    folder: Path

    def plan(self, engine: str) -> Path:
        """The engine."""
        return self.folder / f"{engine}.plan"

    def input(self, stage: str, name: str) -> Path:
        """The values of an input."""
        return self.folder / "inputs" / f"{stage}.{name.replace('*', 'all')}.bin"

    def times(self, stage: str) -> Path:
        """What ``--exportTimes`` writes."""
        return self.folder / f"{stage}.times.json"

    def profile(self, stage: str) -> Path:
        """What ``--exportProfile`` writes."""
        return self.folder / f"{stage}.profile.json"

    def layers(self, stage: str) -> Path:
        """What ``--exportLayerInfo`` writes."""
        return self.folder / f"{stage}.layers.json"


def check_folder(folder: Path) -> None:
    """Check that trtexec can read the paths of files in a folder.

    Raises:
        UserError: a character in it has a meaning in trtexec's lists.
    """
    for character in _SPECIAL:
        if character in str(folder):
            raise UserError(
                f"'{folder}' has a {character} in it, which has a meaning in trtexec's lists: choose another --output.",
                code="output-name-unfit",
            )


def build_line(
    version: str, graph: Graph, onnx: Path, dims: Sequence[TensorInfo], files: Files, library: Path
) -> Line:
    """Return the line that builds an engine.

    Args:
        version: of TensorRT.
        graph: file, profiles, and whether it has the plugin.
        onnx: path of the file.
        dims: the graph's inputs; only those with a symbolic dimension have a shape to give.
        files: where the engine goes.
        library: the plugin.
    """
    dynamic = [tensor.name for tensor in dims if any(isinstance(size, str) for size in tensor.shape)]
    several = len(graph.profiles) > 1
    shapes: list[str] = []
    for i, profile in enumerate(graph.profiles):
        # trtexec takes the three lists that follow directly on --profile as those of that profile.
        shapes += [f"--profile={i}"] if several else []
        for bound in ("min", "opt", "max"):
            sizes = {name: getattr(profile[name], bound) for name in dynamic}
            shapes += [f"--{bound}Shapes={shape_list(sizes)}"] if sizes else []
    arguments = [
        f"--onnx={onnx}",
        f"--saveEngine={files.plan(graph.name)}",
        *(plugin_options(library) if graph.plugin else []),
        *build_options(version),
        *(attention_options(version) if is_language(graph.name) else []),
        f"--timingCacheFile={files.folder / 'timing.cache'}",
        *shapes,
        "--skipInference",
    ]
    return Line(f"build {graph.name}", tuple(arguments))


def measure_line(
    version: str, graph: Graph, stage: Stage, dims: Sequence[TensorInfo], files: Files, library: Path
) -> Line:
    """Return the line that measures a stage; arguments as in :func:`build_line`."""
    dynamic = {tensor.name for tensor in dims if any(isinstance(size, str) for size in tensor.shape)}
    shapes = {
        name: values.shape
        for name, values in stage.inputs.items()
        if name in dynamic or (name == CACHES and any(other.startswith(CACHE) for other in dynamic))
    }
    loaded = ",".join(f"{name}:{files.input(stage.name, name)}" for name in stage.inputs)
    arguments = [
        f"--loadEngine={files.plan(graph.name)}",
        *(plugin_options(library) if graph.plugin else []),
        *([f"--useProfile={stage.profile}"] if len(graph.profiles) > 1 else []),
        *([f"--shapes={shape_list(shapes)}"] if shapes else []),
        f"--loadInputs={loaded}",
        *measure_options(version, cuda_graph=stage.cuda_graph),
        *REPEATS,
        "--profilingVerbosity=detailed",
        f"--exportTimes={files.times(stage.name)}",
        f"--exportProfile={files.profile(stage.name)}",
        f"--exportLayerInfo={files.layers(stage.name)}",
    ]
    return Line(f"measure {stage.name}", tuple(arguments))


def shape_list(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return shapes as trtexec reads them; the inputs of a cache, which are alike, as one pattern."""
    alike = {name: tuple(shape) for name, shape in shapes.items() if name.startswith(CACHE)}
    merged: dict[str, Sequence[int]] = {name: s for name, s in shapes.items() if name not in alike}
    if len(set(alike.values())) == 1:
        merged[CACHES] = next(iter(alike.values()))
    else:
        merged |= alike
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in merged.items())
