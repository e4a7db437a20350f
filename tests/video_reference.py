"""What transformers' video processors compute, without torchvision, which they are only decorated to need."""

from __future__ import annotations

import ast
import logging
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from divprune_edge.manifest import Preprocessing

MODULES = {
    "steps": "models.qwen2_vl.video_processing_qwen2_vl",
    "ends": "models.qwen3_vl.video_processing_qwen3_vl",
}
"""How clips are sampled -> the module of the video processor that does it so."""


def functions_of(module: str) -> SimpleNamespace:
    """Return the functions and methods of a module of transformers, by name, compiled without its imports."""
    import torch

    found = find_spec("transformers")
    assert found is not None and found.origin is not None
    source = Path(found.origin).parent / f"{module.replace('.', '/')}.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for part in (tree, *classes) for node in part.body if isinstance(node, ast.FunctionDef)]
    for node in functions:
        node.decorator_list, node.returns = [], None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
    functions = [node for node in functions if node.name != "__init__"]
    names: dict[str, Any] = {"torch": torch, "np": np, "math": math, "logger": logging.getLogger("none")}
    exec(compile(ast.Module(functions, []), str(source), "exec"), names)
    return SimpleNamespace(**{node.name: names[node.name] for node in functions})


def sampled(kind: str, total: int, rate: float, **asked: Any) -> list[int]:
    """Return the frames that a video processor samples."""
    usual = {"fps": None, "num_frames": None, "min_frames": 4, "max_frames": 768, "temporal_patch_size": 2}
    metadata = SimpleNamespace(total_num_frames=total, fps=rate)
    if kind == "even":
        given = {name: value for name, value in asked.items() if name in ("fps", "num_frames")}
        return list(map(int, functions_of("video_utils").default_sample_indices_fn(metadata, **given)))
    itself = SimpleNamespace(**{**usual, **asked})
    chosen = {name: asked[name] for name in ("fps", "num_frames") if name in asked}
    return list(map(int, functions_of(MODULES[kind]).sample_frames(itself, metadata, **chosen)))


def processed(
    kind: str,
    frames: list[Image.Image],
    facts: Preprocessing,
    bounds: tuple[int, int],
    cap: int | None = None,
) -> tuple[Any, list[int]]:
    """Return ``pixel_values_videos`` and the grid of frames that are resized by Pillow, as everywhere here."""
    import torch

    assert facts.patches is not None
    patches, own, sizes = facts.patches, functions_of(MODULES[kind]), []
    base = SimpleNamespace(resize=lambda image, size, resample: sizes.append((size.height, size.width)))
    resize = _bound(own.resize, base)
    stack = torch.zeros(1, len(frames), 1, frames[0].height, frames[0].width, dtype=torch.uint8)
    itself = SimpleNamespace(max_video_tokens=cap)
    size = SimpleNamespace(shortest_edge=bounds[0], longest_edge=bounds[1])
    resize(
        itself,
        stack,
        size,
        None,
        factor=patches.factor,
        temporal_factor=patches.temporal,
        cap_pixels_per_frame=cap is not None,
    )
    ((height, width),) = sizes
    resized = [np.asarray(f.resize((width, height), Image.Resampling(facts.resample))) for f in frames]
    scaled = (np.stack(resized) * np.float32(facts.rescale_factor) - np.float32(facts.mean)) / np.float32(
        facts.std
    )
    videos = torch.tensor(scaled.astype(np.float32)).permute(0, 3, 1, 2)[None]
    values, *grid = own.patchify(None, videos, patches.patch, patches.merge, patches.temporal)
    return values[0], grid


def _bound(resize: Callable[..., Any], base: Any) -> Callable[..., Any]:
    """Return a method whose ``super()`` is ``base``."""
    globals_of: dict[str, Any] = resize.__globals__
    globals_of |= {"super": lambda: base, "SizeDict": SimpleNamespace}
    return resize
