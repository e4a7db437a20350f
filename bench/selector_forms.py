"""The forms of the selector that are measured against each other."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.selectors.divprune import DIVPRUNE, max_min_select
from divprune_edge.plugins.loader import Library, find_operators

Run = Callable[[], Any]
FUNCTION, OPERATOR = "ONNX Runtime", "our operator"


@dataclass(frozen=True)
class Size:
    """N candidates of D values, of which K are kept."""

    candidates: int
    keep: int
    width: int

    def __str__(self) -> str:
        return f"{self.candidates}->{self.keep} x {self.width}"


SIZES = (
    Size(576, 58, 4096),
    Size(576, 58, 1024),
    Size(1152, 115, 4096),
    Size(2880, 288, 4096),
    Size(6272, 627, 3584),
    Size(8765, 876, 3584),
)


def torch_loop(tokens: Any, keep: int) -> Any:
    """DivPrune with PyTorch's operators, one after the other: what a model without a kernel runs.

    tokens [N, D] in any type and on any device; returns ascending int64 [K].
    """
    import torch

    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    distances = 1 - unit @ unit.T
    # The nearest token of each is itself, so the second nearest counts.
    first = distances.topk(2, dim=0, largest=False).values[1].argmax()
    picks = torch.empty(keep, dtype=torch.int64, device=tokens.device)
    picks[0] = first
    for step in range(1, keep):
        to_chosen = distances[picks[:step]].min(dim=0).values
        picks[step] = to_chosen.argmax()
    return picks.sort().values


def cpu_forms(size: Size, tokens: npt.NDArray[np.float32]) -> dict[str, Run]:
    """What runs without a GPU, on float32 tokens [N, D]."""
    import torch

    valid = np.ones(size.candidates, np.bool_)
    on_torch = torch.from_numpy(tokens)
    session = onnx_session(size, "float32", "CPUExecutionProvider")
    feeds = {"visual_tokens": tokens[None], "valid": valid[None]}
    forms: dict[str, Run] = {
        FUNCTION: lambda: session.run(["kept_indices"], feeds),
        "NumPy reference": lambda: max_min_select(tokens, valid, size.keep),
        "PyTorch loop": lambda: torch_loop(on_torch, size.keep),
    }
    operators = find_operators()
    if operators is not None:
        served = onnx_session(size, "float32", "CPUExecutionProvider", operators)
        forms[OPERATOR] = lambda: served.run(["kept_indices"], feeds)
    if importlib.util.find_spec("fpsample") is not None:
        import fpsample

        # Unit vectors: their Euclidean distance grows with the cosine distance, so the picks are the same.
        unit = np.ascontiguousarray(tokens / np.linalg.norm(tokens, axis=-1, keepdims=True))
        forms["fpsample"] = lambda: fpsample.fps_sampling(unit, size.keep, start_idx=0)
    return forms


def onnx_session(size: Size, dtype: str, provider: str, operators: Library | None = None) -> Any:
    """Return an ONNX Runtime session of the selector's graph, whose node ``operators`` serve where they are given.

    Raises:
        RuntimeError: the provider could not be had, and ONNX Runtime would silently use another.
    """
    import onnxruntime as ort

    from divprune_edge.export.selector import build_selector
    from divprune_edge.export.writer import write_graph

    options = ort.SessionOptions()
    # Sessions that are measured in turn: the threads of one must not spin while another runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if operators is not None:
        options.register_custom_ops_library(str(operators.path))
    model = build_selector(DIVPRUNE, size.candidates, size.keep, size.width, dtype)
    with tempfile.TemporaryDirectory(prefix="divprune-bench-") as folder:
        write_graph(model, Path(folder), "selector.onnx")
        session = ort.InferenceSession(str(Path(folder) / "selector.onnx"), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime does not offer {provider}")
    return session
