"""What images of any size are resized to: what they are, within bounds, or one of a few sizes."""

from __future__ import annotations

import re
from math import prod

from divprune_edge.errors import UserError
from divprune_edge.manifest import MOST_PIXELS, MOST_SIZES, Patches, Preprocessing
from divprune_edge.models.budget import USUAL_TOKENS
from divprune_edge.processing.patches import frame_pixels, usual_sizes

Size = tuple[int, int]


def with_sizes(
    facts: Preprocessing, max_pixels: int | None, resolution: str | None, *, fixed: bool
) -> Preprocessing:
    """Return a checkpoint's preprocessing with what was asked for.

    Args:
        facts: of the checkpoint, with those of clips where there are any.
        max_pixels: bound on the pixels that an image is resized to; None is the checkpoint's own, but no more than
            :data:`~divprune_edge.models.budget.USUAL_TOKENS` visual tokens.
        resolution: the sizes themselves, width by height, with commas between them.
        fixed: take sizes that follow from the bound where none are asked for.

    Raises:
        UserError: bound or sizes are not possible for this checkpoint.
    """
    patches = facts.patches
    if patches is None:
        if max_pixels is not None:
            raise UserError(
                f"--max-pixels {max_pixels} is for models that take images of any size: leave it out.",
                code="max-pixels-without-sizes",
            )
        if resolution is not None:
            raise UserError(
                f"--resolution {resolution} is for models that take images of any size: leave it out.",
                code="resolution-without-sizes",
            )
        return facts
    if resolution is not None:
        if max_pixels is not None:
            raise UserError(
                "Give either --resolution, the sizes of images, or --max-pixels, from which sizes follow.",
                code="options-exclusive",
            )
        sizes = _parse(resolution, patches)
        changes: dict[str, object] = {"max_pixels": max(map(prod, sizes)), "sizes": sizes}
    else:
        token = patches.factor**2
        most = min(patches.max_pixels, USUAL_TOKENS * token) if max_pixels is None else max_pixels
        if most < max(patches.min_pixels, token):
            raise UserError(
                f"--max-pixels is {most}, but images have at least {max(patches.min_pixels, token)} pixels: give more.",
                code="max-pixels-out-of-range",
            )
        if most > MOST_PIXELS:
            raise UserError(
                f"--max-pixels is {most}, but an image may have {MOST_PIXELS} at most: give less.",
                code="max-pixels-out-of-range",
            )
        patches = patches.model_copy(update={"max_pixels": most})
        frame = None if facts.clips is None else frame_pixels(facts.clips, facts.clips.frames)
        changes = {"sizes": usual_sizes(patches, frame)} if fixed else {}
    return facts.model_copy(update={"patches": Patches(**(patches.model_dump() | changes))})


def _parse(text: str, facts: Patches) -> tuple[Size, ...]:
    """Return sizes (height, width), each once.

    Raises:
        UserError: they are no sizes, too many, or not possible for this checkpoint.
    """
    found: dict[Size, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})x(\d{1,6})\s*", part)
        if match is None:
            raise UserError(
                f"--resolution has '{part}', expected widths and heights in pixels such as 448x448,672x448.",
                code="option-invalid",
            )
        width, height = map(int, match.groups())
        _check(height, width, facts)
        found[height, width] = None
    if len(found) > MOST_SIZES:
        raise UserError(
            f"--resolution has {len(found)} sizes, expected at most {MOST_SIZES}: each is a profile of the vision "
            "encoder's engine.",
            code="resolution-out-of-range",
        )
    return tuple(found)


def _check(height: int, width: int, facts: Patches) -> None:
    near = [max(1, round(side / facts.factor)) * facts.factor for side in (width, height)]
    if near != [width, height]:
        raise UserError(
            f"--resolution {width}x{height} is not made of whole visual tokens, which are {facts.factor} pixels a "
            f"side: give {near[0]}x{near[1]}.",
            code="resolution-out-of-range",
        )
    if not facts.min_pixels <= height * width <= facts.max_pixels:
        raise UserError(
            f"--resolution {width}x{height} has {height * width} pixels, but this checkpoint's images have "
            f"{facts.min_pixels} to {facts.max_pixels}: give a size between these.",
            code="resolution-out-of-range",
        )
