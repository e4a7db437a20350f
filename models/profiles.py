"""Engines' names, and their optimisation profiles: the shapes that follow from the bundle's fixed budget.

Plain data (input name -> least, typical and largest shape), so that the builder and a trtexec command line say the
same thing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from divprune_edge.errors import UserError
from divprune_edge.manifest import (
    GraphInfo,
    LanguageInfo,
    LayerGroup,
    Manifest,
    SelectorInfo,
    Strict,
    TensorInfo,
    larger_capacity,
)
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.dialects import option
from divprune_edge.processing.patches import dimensions, held_dimensions

ALIGNMENT = 256
"""Bytes on which TensorRT wants every tensor to start."""
Shape = tuple[int, ...]
VISION, ASSEMBLE, LANGUAGE = "vision_encoder", "assemble", "language_model"
"""Names of the engines of a bundle, of which one has no ``assemble`` where an image is one tile; a selector's engine is
called by the selector's id."""
HIDDEN = "hidden"
"""The input of a graph of a chain that is not its first one."""
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
SizeRange = tuple[int, int, int]
"""The least, typical and largest size of a symbolic dimension."""


class EngineLimits(Strict):
    """What a language model's engine is built for: tokens of a prefill, visual tokens, sequences of a decode step.

    ``kept`` is the least, typical and largest number of visual tokens: one row of zeros where a prompt has no image,
    the first selector's budget, and the largest budget for each of ``images``.
    """

    max_prompt: int = Field(gt=0)
    kept: SizeRange
    slots: int = Field(default=1, gt=0)
    images: int = Field(default=1, gt=0)


def make_limits(
    manifest: Manifest,
    selectors: Sequence[SelectorInfo | None],
    max_prompt: int | None,
    slots: int = 1,
    images: int = 1,
) -> EngineLimits:
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
    return EngineLimits(max_prompt=max_prompt or usual, kept=(1, kept[0], most), slots=slots, images=images)


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


def vision_profiles(manifest: Manifest, *, apart: bool = True) -> tuple[Profile, ...]:
    """One profile, for the tiles of one run; for images of any size one for each grid that they may have.

    These share the engine's weights; where profiles share none, one spans them all.
    """
    inputs, spans = manifest.vision_encoder.inputs, _spans(manifest)
    patches = manifest.preprocessing.patches
    if not apart or patches is None or not patches.sizes:
        return (_profile(inputs, spans),)
    each = ({name: (size, size, size) for name, size in one.items()} for one in dimensions(patches))
    return tuple(_profile(inputs, {**spans, **one}) for one in each)


def assemble_profiles(manifest: Manifest) -> tuple[Profile]:
    """One profile, for the tiles of one image or clip, whose rows are one group or as many as its tiles."""
    info, groups = manifest.assemble, manifest.groups
    assert info is not None
    spans = {**_spans(manifest), "tiles": (1, info.tiles, info.tiles), "groups": (1, groups, groups)}
    for name, most in held_dimensions(manifest.preprocessing).items():
        spans[name] = (spans[name][0], most, most)
    return (_profile(info.inputs, spans),)


def _spans(manifest: Manifest) -> dict[str, SizeRange]:
    """Return what the dimensions of the encoder's inputs and outputs may be: tiles, and those of a grid."""
    most = manifest.tiles_at_once
    spans = {"tiles": (1, most, most), "frames": (1, most, most)}
    if (patches := manifest.preprocessing.patches) is not None:
        sizes = dimensions(patches)
        for name in sizes[0]:
            least, largest = min(one[name] for one in sizes), max(one[name] for one in sizes)
            spans[name] = (least, largest, largest)
    return spans


def selector_profiles(selector: SelectorInfo) -> tuple[Profile]:
    """One profile: everything is fixed; signals come from the vision encoder, so their tiles are the batch."""
    return (_profile(selector.inputs, {"batch": (1, 1, 1), "tiles": (1, 1, 1)}),)


def language_profiles(
    info: GraphInfo, limits: EngineLimits, group: LayerGroup | None = None, *, apart: bool = True
) -> tuple[Profile, ...]:
    """Two profiles of one engine, :data:`DECODE` and :data:`PREFILL`, which share its weights; or one for both.

    ``info`` is the language model, or a graph of a chain, which has the layers of ``group``.
    """
    capacity, fewer = (None, 0) if group is None else (group.capacity, group.fewer)
    longest = min(limits.max_prompt, capacity or limits.max_prompt)
    there = max(0, limits.kept[1] - fewer)
    typical = min(longest, there + QUESTION)
    one, all_slots = (1, 1, 1), (1, limits.slots, limits.slots)
    # What a schedule's method is asked for is one row of nothing in decode.
    rows = dict.fromkeys(
        ("scored", "keys", *(f"{name}_rows" for name in ("asked", "text", "visual", "all"))), one
    )
    sizes = {"batch": one, "visual": limits.kept, **rows}
    few, many = (1, max(1, min(there, longest)), longest), (1, typical, capacity or longest)
    asked = {name: many if name == "keys" else few for name in rows}
    prefill = {**sizes, **asked, "seq": (1, typical, longest)}
    if not apart:
        return (_profile(info.inputs, {**prefill, "batch": (1, 1, limits.slots)}),)
    decode = {**sizes, "batch": all_slots, "seq": one}
    return _profile(info.inputs, decode), _profile(info.inputs, prefill)


def language_engines(info: LanguageInfo) -> tuple[str, ...]:
    """Return the names of the language model's engines: one, or one for each graph of a chain."""
    return (
        (LANGUAGE,) if info.schedule is None else tuple(f"{LANGUAGE}.{i}" for i in range(len(info.segments)))
    )


def is_language(engine: str) -> bool:
    """Whether an engine of that name is one of the language model's; no selector is called so."""
    return engine == LANGUAGE or engine.startswith(f"{LANGUAGE}.")


def is_within(shape: Shape, least: Shape, largest: Shape) -> bool:
    """Whether a profile with these bounds takes an input of that shape."""
    return all(a <= b <= c for a, b, c in zip(least, shape, largest, strict=True))


def fitting(profiles: Sequence[Profile], inputs: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the index of the first profile that takes these inputs; there must be one."""

    def fits(profile: Profile) -> bool:
        return all(is_within(value.shape, profile[n].min, profile[n].max) for n, value in inputs.items())

    return next(index for index, profile in enumerate(profiles) if fits(profile))


def _profile(inputs: Iterable[TensorInfo], sizes: Mapping[str, SizeRange]) -> Profile:
    return {tensor.name: _shapes(tensor, sizes) for tensor in inputs}


def _shapes(tensor: TensorInfo, sizes: Mapping[str, SizeRange]) -> Shapes:
    for size in tensor.shape:
        if isinstance(size, str) and size not in sizes:
            raise UserError(
                f"Input '{tensor.name}' has a dimension '{size}' that no engine is built for: export the bundle again "
                f"with {option(lambda one: one.for_tensorrt)}.",
                code="graph-dimension-unknown",
            )
    least, typical, largest = (
        tuple(sizes[size][at] if isinstance(size, str) else size for size in tensor.shape) for at in range(3)
    )
    return Shapes(min=least, opt=typical, max=largest)
