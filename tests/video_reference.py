"""What transformers' video processors compute, without torchvision, which they are only decorated to need."""

from __future__ import annotations

import ast
import logging
import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from divprune_edge.manifest import Patches, Preprocessing

MODULES = {
    "steps": "models.qwen2_vl.video_processing_qwen2_vl",
    "ends": "models.qwen3_vl.video_processing_qwen3_vl",
}
"""How clips are sampled -> the module of the video processor that does it so."""


@cache
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
    functions = [node for node in functions if not node.name.startswith("__")]
    names: dict[str, Any] = {"torch": torch, "np": np, "math": math, "logger": logging.getLogger("none")}
    exec(compile(ast.Module(functions, []), str(source), "exec"), names)
    return SimpleNamespace(**{node.name: names[node.name] for node in functions})


def sampled(kind: str, total: int, rate: float, **asked: Any) -> list[int]:
    """Return the frames that a video processor samples."""
    usual = {"fps": None, "num_frames": None, "min_frames": 4, "max_frames": 768, "temporal_patch_size": 2}
    metadata = SimpleNamespace(total_num_frames=total, fps=rate)
    if kind == "even":
        from transformers.video_utils import default_sample_indices_fn

        given = {name: value for name, value in asked.items() if name in ("fps", "num_frames")}
        return list(map(int, default_sample_indices_fn(metadata, **given)))
    itself = SimpleNamespace(**{**usual, **asked})
    chosen = {name: asked[name] for name in ("fps", "num_frames") if name in asked}
    found = map(int, functions_of(MODULES[kind]).sample_frames(itself, metadata, **chosen))
    return [
        index for index in found if index < total
    ]  # a step that is rounded down makes one more, behind the end


def processed_size(
    kind: str, count: int, size: tuple[int, int], patches: Patches, cap: int | None, bounds: tuple[int, int]
) -> tuple[int, int]:
    """Return the (height, width) that ``count`` frames of ``size`` are resized to."""
    import torch

    resize, sizes = functions_of(MODULES[kind]).resize, []
    base = SimpleNamespace(resize=lambda image, size, resample: sizes.append((size.height, size.width)))
    resize.__globals__.update({"super": lambda: base, "SizeDict": SimpleNamespace})
    resize(
        SimpleNamespace(max_video_tokens=cap),
        torch.empty(1, count, 1, *size, dtype=torch.uint8),
        SimpleNamespace(shortest_edge=bounds[0], longest_edge=bounds[1]),
        None,
        factor=patches.factor,
        temporal_factor=patches.temporal,
        cap_pixels_per_frame=cap is not None,
    )
    (found,) = sizes
    return found


def processed(
    kind: str, frames: Sequence[Image.Image], facts: Preprocessing, *, resize: bool = True
) -> tuple[Any, list[int]]:
    """Return ``pixel_values_videos`` and the grid of frames that are resized by Pillow, as everywhere here.

    Without ``resize`` they are what they are, as with ``do_resize=False``.
    """
    import torch

    patches, shape = facts.patches, (frames[0].height, frames[0].width)
    assert patches is not None
    bounds = patches.min_pixels, patches.max_pixels
    height, width = shape
    if resize:
        height, width = processed_size(kind, len(frames), shape, patches, None, bounds)
    resized = [np.asarray(f.resize((width, height), Image.Resampling(facts.resample))) for f in frames]
    scaled = np.stack(resized) * np.float32(facts.rescale_factor) - np.float32(facts.mean)
    videos = torch.tensor((scaled / np.float32(facts.std)).astype(np.float32)).permute(0, 3, 1, 2)[None]
    cut = functions_of(MODULES[kind]).patchify
    values, *grid = cut(None, videos, patches.patch, patches.merge, patches.temporal)
    return values[0], grid
