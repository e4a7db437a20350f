"""CUDA graphs of ONNX Runtime: a run whose buffers stay where they are is captured once and replayed.

A replay reads no memory of the host, so that nothing of a step may be there: ids and lengths are copied into buffers of
the device, and the one input of GroupQueryAttention that ONNX Runtime wants on the host, ``total_sequence_length``, is
given the whole cache. It only bounds what is launched; the valid rows are those of ``seqlens_k``. Where that is
not so, the replay of a second step would differ from a plain run, and the first ones are compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

GRAPHS_VARIABLE = "DIVPRUNE_CUDA_GRAPHS"
HOST_INPUTS = frozenset({"total_sequence_length"})
"""Inputs that ONNX Runtime's kernels read on the host."""
CHECKED_RUNS = 2
"""Replays of each graph that are compared with a run without: of one step, and of another one."""
_log = logging.getLogger("divprune_edge")


def wants_graphs(device: str) -> bool:
    """Whether runs are to be captured: on CUDA, unless the environment says ``off``."""
    return device == "cuda" and os.environ.get(GRAPHS_VARIABLE) != "off"


@lru_cache(maxsize=256)
def run_options(graph: int | None) -> ort.RunOptions:
    """Return the options of a run from the graph of this number, or from none."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))
    return options


def check_replay(plain: Sequence[npt.NDArray[Any]], replayed: Sequence[npt.NDArray[Any]]) -> bool:
    """Whether a replay gives what a plain run of the same inputs gave: the same integers, and numbers close to it."""
    return all(
        np.array_equal(a, b)
        if a.dtype.kind in "iub"
        else np.allclose(a, b, rtol=1e-2, atol=1e-2, equal_nan=True)
        for a, b in zip(plain, replayed, strict=True)
    )


def warn_of(what: str) -> None:
    """Say why a session goes on without graphs: ``what`` ONNX Runtime does."""
    _log.warning(
        "ONNX Runtime %s %s: going on without CUDA graphs of it (%s=off does at once).",
        ort.__version__,
        what,
        GRAPHS_VARIABLE,
    )
