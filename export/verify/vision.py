"""The vision encoder against transformers' tower and projector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.seen import Seen
from divprune_edge.export.verify.comparison import (
    Tolerance,
    at_most,
    cosine_error,
    for_the_record,
    none_of,
    relative_error,
)
from divprune_edge.export.verify.graphs import open_graph
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.manifest import Check
from divprune_edge.models.signals import ORIGINS
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.sources import Video

Array = npt.NDArray[Any]
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


def sample_inputs(plan: ExportPlan) -> list[ImageInput]:
    """Return :func:`sample_images` of the sizes that the family names, and a clip, as its encoder takes them."""
    facts, size, shapes = plan.preprocessing, plan.spec.image_size, plan.family.sample_sizes(plan.spec)
    images = [
        plan.family.reader.image(Image.fromarray(sample_images(*shape)[i]), facts, size, True)
        for i, shape in enumerate(shapes)
    ]
    if facts.clips is None or plan.family.reader.clip is None:
        return images
    frames = sample_images(*shapes[0])[: min(3, facts.clips.frames)]
    return [*images, plan.family.reader.clip(Video(frames), facts, size)]


def check_vision(
    seen: Sequence[Seen],
    oracle: Oracle,
    images: Sequence[ImageInput],
    tolerance: Tolerance,
    unquantised: Sequence[Array] | None = None,
) -> list[Check]:
    """Return the checks of the visual tokens of ``images``, row by row in the order in which they are read.

    ``unquantised`` are the tokens that the checkpoint's own weights give, where the reference has others.
    """
    found, wanted = [one.read for one in seen], oracle.visual_tokens(images)
    shapes = [(f.shape, w.shape) for f, w in zip(found, wanted, strict=True) if f.shape != w.shape]
    checks = [
        none_of("vision", "rows of an image", [f"{f} and not {w}" for f, w in shapes], len(found), "images")
    ]
    if shapes:
        return checks
    every, right = np.concatenate(found), np.concatenate(wanted)
    checks += [
        at_most("vision", "visual tokens", relative_error(every, right), tolerance.error, unit="relative"),
        at_most("vision", "their direction", cosine_error(every, right), tolerance.cosine, unit="1 - cosine"),
    ]
    if unquantised is not None:
        error = cosine_error(every, np.concatenate(unquantised))
        checks.append(for_the_record("vision", "cost of the precision", error, unit="1 - cosine"))
    return checks


def run_signals(path: Path, images: Sequence[ImageInput], names: Sequence[str]) -> dict[str, Array]:
    """Return the encoder's outputs ``names`` of the tiles of all images."""
    names = [name for name in names if name != ORIGINS]
    if not names:
        return {}
    pixels = np.concatenate([image.pixels for image in images])
    return dict(zip(names, open_graph(path).run(list(names), {"pixels": pixels}), strict=True))
