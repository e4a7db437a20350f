"""Optimisation profiles: the shapes that an engine is built for, which follow from the bundle's fixed budget.

Plain data (input name -> least, typical and largest shape), so that the builder and a trtexec command line say the
same thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import Field

from divprune_edge.errors import UserError
from divprune_edge.manifest import (
    AssembleInfo,
    LanguageInfo,
    Manifest,
    SelectorInfo,
    Strict,
    TensorInfo,
    larger_capacity,
)
from divprune_edge.models.budget import PROMPT
from divprune_edge.runtime.engines.device import ALIGNMENT, Shape

VISION, ASSEMBLE, LANGUAGE = "vision_encoder", "assemble", "language_model"
"""Names of the engines of a bundle, of which one has no ``assemble`` where an image is one tile; a selector's engine is
called by the selector's id."""
DECODE, PREFILL = 0, 1
"""Indices of the language model's optimisation profiles; the first decides how the weights lie in memory. Where
there is one alone, it is both."""
QUESTION = 64
"""Tokens of a typical prompt beside the visual ones: LLaVA-1.5's system prompt and one question."""


class Shapes(Strict):
    """The least, the typical (tuned for) and the largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


Profile = dict[str, Shapes]
"""Name of each input of a graph -> its shapes."""
Span = tuple[int, int, int]
"""The least, typical and largest size of a symbolic dimension."""


class Limits(Strict):
    """What a language model's engine is built for: tokens of a prefill, visual tokens, sequences of a decode step.

    ``kept`` is the least, typical and largest number of visual tokens: one row of zeros where a prompt has no image,
    the first selector's budget, and the largest budget for each of ``images``.
    """

    max_prompt: int = Field(gt=0)
    kept: Span
    slots: int = Field(default=1, gt=0)
    images: int = Field(default=1, gt=0)


def make_limits(
    manifest: Manifest,
    selectors: Sequence[SelectorInfo | None],
    max_prompt: int | None,
    slots: int = 1,
    images: int = 1,
) -> Limits:
    """Return the limits of engines that serve ``selectors``; None among them stands for no pruning.

    Args:
        manifest: of the bundle.
        selectors: the first is what the engine is tuned for.
        max_prompt: longest piece of a prompt that is fed at once, visual tokens included; longer prompts are fed in
            pieces. None takes the visual tokens and :data:`~divprune_edge.models.budget.PROMPT` more.
        slots: most sequences that a decode step takes.
        images: most images of a prompt.

    Raises:
        UserError: ``max_prompt``, ``slots`` or ``images`` is not positive, or larger than what there is room for.
    """
    info = manifest.language_model
    kept = [manifest.visual_tokens(selector) for selector in selectors]
    if max_prompt is not None and not 1 <= max_prompt <= info.positions:
        raise UserError(
            f"--max-prompt is {max_prompt}, but the language model has room for {info.positions} tokens: give a number "
            f"from 1 to {info.positions}{larger_capacity(info)}.",
            code="max-prompt-out-of-range",
        )
    if slots < 1:
        raise UserError(f"--slots is {slots}, expected at least 1.", code="slots-out-of-range")
    if not 1 <= images < info.positions:
        raise UserError(
            f"--images is {images}, but the language model has room for {info.positions} tokens: give a number from "
            f"1 to {info.positions - 1}.",
            code="images-out-of-range",
        )
    most = images * max(kept)
    usual = min(most + PROMPT, info.positions)
    return Limits(max_prompt=max_prompt or usual, kept=(1, kept[0], most), slots=slots, images=images)


def check_slots(info: LanguageInfo, capacity: int | None, slots: int) -> None:
    """Check that the cache of every slot, of ``capacity`` rows, begins where TensorRT can bind it.

    Raises:
        UserError: it does not; the sentence says which capacity would do.
    """
    assert capacity is not None
    row = info.kv_heads * info.head_dim * np.dtype(info.cache_dtype).itemsize
    if slots == 1 or (row * capacity % ALIGNMENT == 0 and row % 16 == 0):
        return
    step = ALIGNMENT // math.gcd(ALIGNMENT, row)
    remedy = f"export with a --capacity that is a multiple of {step}" if row % 16 == 0 else "take one slot"
    raise UserError(
        f"{slots} slots were asked for, but a cache of {capacity} rows of {row} bytes cannot lie behind another, "
        f"as TensorRT binds memory at multiples of {ALIGNMENT} bytes: {remedy}.",
        code="slots-unaligned",
    )


def vision_profiles(manifest: Manifest) -> tuple[Profile]:
    """One profile, for the tiles of one run."""
    most = manifest.tiles_at_once
    return (_profile(manifest.vision_encoder.inputs, {"tiles": (1, most, most)}),)


def assemble_profiles(info: AssembleInfo) -> tuple[Profile]:
    """One profile, for the tiles of one image, whose rows are one group or as many as its tiles."""
    groups = info.tiles if info.per == "tile" else 1
    return (_profile(info.inputs, {"tiles": (1, info.tiles, info.tiles), "groups": (1, groups, groups)}),)


def selector_profiles(selector: SelectorInfo) -> tuple[Profile]:
    """One profile: everything is fixed; signals come from the vision encoder, so their tiles are the batch."""
    return (_profile(selector.inputs, {"batch": (1, 1, 1), "tiles": (1, 1, 1)}),)


def language_profiles(info: LanguageInfo, limits: Limits, *, apart: bool = True) -> tuple[Profile, ...]:
    """Two profiles of one engine, :data:`DECODE` and :data:`PREFILL`, which share its weights; or one for both."""
    typical = min(limits.max_prompt, limits.kept[1] + QUESTION)
    one, all_slots = (1, 1, 1), (1, limits.slots, limits.slots)
    sizes = {"batch": one, "visual": limits.kept}
    prefill = {**sizes, "seq": (1, typical, limits.max_prompt)}
    if not apart:
        return (_profile(info.inputs, {**prefill, "batch": (1, 1, limits.slots)}),)
    decode = {**sizes, "batch": all_slots, "seq": one}
    return _profile(info.inputs, decode), _profile(info.inputs, prefill)


def _profile(inputs: Iterable[TensorInfo], sizes: Mapping[str, Span]) -> Profile:
    return {tensor.name: _shapes(tensor, sizes) for tensor in inputs}


def _shapes(tensor: TensorInfo, sizes: Mapping[str, Span]) -> Shapes:
    for size in tensor.shape:
        if isinstance(size, str) and size not in sizes:
            raise UserError(
                f"Input '{tensor.name}' has a dimension '{size}' that no engine is built for: export the bundle again "
                "with --dialect static or decomposed.",
                code="graph-dimension-unknown",
            )
    least, typical, largest = (
        tuple(sizes[size][at] if isinstance(size, str) else size for size in tensor.shape) for at in range(3)
    )
    return Shapes(min=least, opt=typical, max=largest)
