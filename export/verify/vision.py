"""The vision encoder against transformers' tower and projector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.comparison import (
    Tolerance,
    at_most,
    cosine_error,
    for_the_record,
    relative_error,
)
from divprune_edge.export.verify.graphs import open_graph
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.manifest import Check

Pixels = npt.NDArray[np.uint8]


def sample_images(height: int, width: int) -> Pixels:
    """Return uint8 [4, height, width, 3]: something image-like, noise, a gradient, and one flat colour."""
    random = np.random.default_rng(7)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    noise = random.integers(0, 256, (height, width, 3))
    gradient = np.stack([rows, columns, 1 - rows], axis=-1) * 255
    # Discs of different colours on the gradient, with a little grain: edges, flat parts and texture.
    scene = gradient * 0.5
    for _ in range(6):
        y, x, radius = random.random(3) * (1, 1, 0.25)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        scene[disc] = random.integers(0, 256, 3)
    scene = scene + random.normal(0, 6, scene.shape)
    flat = np.broadcast_to(np.array([200.0, 30.0, 90.0]), (height, width, 3))
    return np.stack([np.clip(p, 0, 255).astype(np.uint8) for p in (scene, noise, gradient, flat)])


def check_vision(
    path: Path,
    oracle: Oracle,
    images: Pixels,
    tolerance: Tolerance,
    unquantised: npt.NDArray[Any] | None = None,
) -> tuple[list[Check], npt.NDArray[Any]]:
    """Return the checks and the graph's visual tokens [4, N, D] of ``images``.

    ``unquantised`` are the tokens that the checkpoint's own weights give, where the reference has others.
    """
    found = open_graph(path).run(["visual_tokens"], {"pixels": images})[0]
    wanted = oracle.visual_tokens(images)
    checks = [
        at_most("vision", "visual tokens", relative_error(found, wanted), tolerance.error, unit="relative"),
        at_most(
            "vision", "their direction", cosine_error(found, wanted), tolerance.cosine, unit="1 - cosine"
        ),
    ]
    if unquantised is not None:
        error = cosine_error(found, unquantised)
        checks.append(for_the_record("vision", "cost of the precision", error, unit="1 - cosine"))
    return checks, found


def run_signals(path: Path, images: Pixels, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the graph's outputs ``names`` of uint8 ``images``; their first axis is the images'."""
    if not names:
        return {}
    return dict(zip(names, open_graph(path).run(list(names), {"pixels": images}), strict=True))
