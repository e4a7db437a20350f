"""From what an export is asked for to its plan: everything that can be wrong is told before anything is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.dialects import find_dialect
from divprune_edge.export.image_sizes import with_sizes
from divprune_edge.export.plan import ExportPlan, is_for_cuda
from divprune_edge.export.precision import (
    activation_type,
    check_for_tensorrt,
    largest_block,
    parse_precisions,
)
from divprune_edge.export.prompt_facts import read_prompt
from divprune_edge.export.prompts import check_prompts
from divprune_edge.export.schedule import plan_schedule
from divprune_edge.manifest import MOST_FRAMES, UNPRUNED, Clips, Numbering, Per
from divprune_edge.models.budget import budget, cache_capacity
from divprune_edge.models.dialects import option
from divprune_edge.models.families import family_of
from divprune_edge.models.families.family import Family, Spec
from divprune_edge.models.selectors import Selector, find_selector
from divprune_edge.models.signals import NONE, ORIGINS, parse_signals, why_not
from divprune_edge.models.tiles import candidates_of, picks_of

DEFAULT_DIALECT = "portable"


def parse_numbering(asked: str | None) -> Numbering | None:
    """Return ``--positions``, None where it was not given.

    Raises:
        UserError: it is something else.
    """
    known: tuple[Numbering, ...] = ("compact", "original")
    for one in known:
        if asked == one:
            return one
    if asked is None:
        return None
    raise UserError(f"--positions is '{asked}', expected compact or original.", code="option-invalid")


def parse_per(*, tile: bool, frame: bool) -> Per:
    """Return what ``--per-tile`` and ``--per-frame`` say.

    Raises:
        UserError: both were given.
    """
    if tile and frame:
        raise UserError(
            "--per-tile and --per-frame both say what a selector picks from: give one; a clip's frames are tiles, too.",
            code="options-exclusive",
        )
    return "tile" if tile else "frame" if frame else "image"


def plan_export(
    checkpoint: Checkpoint,
    *,
    selector: str,
    keep: int | None,
    prune: str | None,
    precision: str,
    block_size: int | None = None,
    dialect: str = DEFAULT_DIALECT,
    capacity: int | None = None,
    signals: str = NONE,
    target: str | None = None,
    per: Per = "image",
    numbering: Numbering | None = None,
    max_pixels: int | None = None,
    frames: int | None = None,
    resolution: str | None = None,
    greedy: bool = False,
    schedule: str | None = None,
    encoder_cut: str | None = None,
) -> ExportPlan:
    """Read a checkpoint, whatever its family, and settle the export.

    ``signals`` are outputs of the vision encoder beyond those that the selector needs: ``all``, ``none`` or names.
    ``per`` says whether a selector picks from an image at once, or from each of its tiles or of a clip's frames.
    ``frames`` is the most frames of a clip that are looked at; None: the bundle takes no clips.
    ``capacity`` is the number of rows of the KV cache where the dialect makes it part of the graph. ``block_size`` of
    int4 is 32 where it is None; for TensorRT the largest that divides. ``target`` is
    noted; what it settles, :func:`divprune_edge.export.targets.settle` has settled. ``numbering`` says how what is left
    of a prompt's images is numbered, None as the family does it. ``max_pixels`` and ``resolution`` say what images of
    any size are resized to; see :func:`~divprune_edge.export.image_sizes.with_sizes`. ``greedy``: the language model
    says the next id of greedy decoding itself. ``schedule`` prunes inside the language model, too: a method's name or a
    JSON file; all visual tokens enter it where neither ``keep`` nor ``prune`` is given. ``encoder_cut`` (LAYER:KEEP)
    lets most patches leave inside the encoder.

    Raises:
        UserError: anything about the request or the checkpoint that does not fit, before any work.
    """
    written = find_dialect(dialect)
    half = written.facts.for_tensorrt or is_for_cuda(target)
    precisions = replace(parse_precisions(precision, block_size), half=half)
    chosen = find_selector(selector)
    family = family_of(checkpoint.config)
    spec = family.spec(checkpoint.config)
    preprocessing = family.preprocessing(checkpoint.files, spec)
    if frames is not None:
        clips = _clips(checkpoint, family, spec, frames, max_pixels)
        preprocessing = preprocessing.model_copy(update={"clips": clips})
    preprocessing = with_sizes(preprocessing, max_pixels, resolution, fixed=written.facts.for_tensorrt)
    spec = spec.for_images(preprocessing)
    whole_image = candidates_of(spec, per)
    numbering_asked, numbering = numbering, numbering or family.numbering
    if encoder_cut is not None:
        spec = _cut_inside(spec, encoder_cut, numbering)
    offered = spec.signal_shapes()
    _check_selector(chosen, spec)
    given = [name for name in offered if name != ORIGINS]
    outputs = (*parse_signals(signals, chosen.signals, given), *({ORIGINS} & offered.keys()))
    if written.facts.for_tensorrt:
        check_for_tensorrt(precisions, block_size, dialect)
    elif capacity is not None:
        raise UserError(
            f"--capacity {capacity} does not go with --dialect {dialect}, whose cache grows as it is needed: leave "
            f"it out, or choose {option(lambda one: one.for_tensorrt)}.",
            code="capacity-with-dialect",
        )
    _check_grouping(per, frames, spec, checkpoint.name)
    if numbering == "original" and spec.decoder.rope.axes == 1 and not written.facts.takes_positions:
        raise UserError(
            f"--positions original does not go with --dialect {dialect}, which places '{checkpoint.name}'s tokens at "
            f"the row of the cache that it fills: use {option(lambda one: one.takes_positions)}, or leave --positions "
            "out.",
            code="dialect-positions",
        )
    candidates = candidates_of(spec, per)
    if schedule not in (None, UNPRUNED) and keep is None and prune is None:
        keep = candidates  # published counts are of all visual tokens
    keep = budget(keep, prune, candidates, whole_image)
    kept = keep * picks_of(spec, per)
    inside = plan_schedule(schedule, spec, kept, numbering_asked, dialect)
    rows = None
    if written.facts.for_tensorrt:
        rows = cache_capacity(kept, spec.decoder.context, capacity, _captions(preprocessing.clips))
    spec = spec.with_decoder(spec.decoder.within(rows or spec.decoder.context))
    written.check(spec.decoder, activation_type(precisions.language, half=precisions.half))
    names = family.weight_names(checkpoint.tensors, _tied(checkpoint))
    embedding_rows = checkpoint.rows(f"{names.decoder}embed_tokens.weight")
    checkpoint.check(names.parameters(spec, embedding_rows, checkpoint.rows(names.head)))
    prompt = read_prompt(
        checkpoint.files,
        checkpoint.config,
        spec.image_token_id,
        checkpoint.rows(names.head),
        family.template,
        spec.video_token_id if frames is not None else None,
        embedding_rows,
    )
    plan = ExportPlan(
        checkpoint,
        family,
        spec,
        names,
        preprocessing,
        prompt,
        precisions,
        written,
        chosen,
        keep,
        outputs,
        rows,
        target,
        per,
        numbering,
        greedy,
        schedule=inside,
    )
    if written.facts.for_tensorrt and block_size is None:
        plan = replace(plan, precisions=replace(precisions, block_size=largest_block(plan.block_widths)))
    plan.check_formats()
    check_prompts(plan)
    return plan


def _check_grouping(per: Per, frames: int | None, spec: Spec, name: str) -> None:
    """Check that a selector can pick from each frame or tile of what the checkpoint ``name`` sees.

    Raises:
        UserError: there are none.
    """
    if per == "frame" and frames is None:
        raise UserError(
            "--per-frame is for bundles that take clips: add --frames N, the most frames of a clip to look at.",
            code="per-frame-without-frames",
        )
    if per == "tile" and (spec.rows is None or spec.rows.tiles == 1):
        raise UserError(
            f"--per-tile is for models whose images are cut into tiles, but an image of '{name}' is one "
            "tile: leave it out.",
            code="per-tile-without-tiles",
        )


def _clips(
    checkpoint: Checkpoint, family: Family[Any], spec: Spec, frames: int, max_pixels: int | None
) -> Clips:
    """Return the facts of clips of at most so many frames.

    Raises:
        UserError: the family takes none, or it is no number of frames.
    """
    if family.clips is None:
        raise UserError(
            f"--frames {frames} is for models that take clips, but '{checkpoint.name}' is of the family "
            f"'{family.name}', which takes images alone: leave it out.",
            code="clips-unsupported",
        )
    if not 1 <= frames <= MOST_FRAMES:
        raise UserError(
            f"--frames is {frames}, expected 1 to {MOST_FRAMES}.", code="clip-frames-out-of-range"
        )
    return family.clips(checkpoint.files, spec, frames, max_pixels)


def _check_selector(selector: Selector, spec: Spec) -> None:
    """Check that a selector can pick from what the model's encoder gives.

    Raises:
        UserError: it cannot.
    """
    if spec.rows is not None:
        selector.refuse_tiles()
    offered = spec.signal_shapes()
    missing = selector.missing(offered)
    if missing:
        raise UserError(
            f"The selector '{selector.name}' needs {', '.join(missing)}, which the checkpoint's vision encoder cannot "
            f"give{why_not(missing, offered)}: choose a selector that does not, such as divprune.",
            code="signals-unavailable",
        )
    if spec.stacked:
        selector.refuse_stacked()


def _cut_inside(spec: Spec, asked: str, numbering: Numbering) -> Spec:
    """Return the model with ``--encoder-cut`` as it was asked for.

    Raises:
        UserError: it is something else than two numbers, or does not go with the model or with how tokens are numbered.
    """
    numbers = asked.split(":")
    if len(numbers) != 2 or not all(
        part.isascii() and part.isdecimal() and len(part) < 7 for part in numbers
    ):
        raise UserError(
            f"--encoder-cut is '{asked[:80]}', expected LAYER:KEEP, such as 12:288: behind the first 12 layers 288 "
            "patches go on.",
            code="option-invalid",
        )
    spec = spec.with_encoder_cut(int(numbers[0]), int(numbers[1]))
    if numbering == "original":
        raise UserError(
            "--positions original does not go with --encoder-cut: leave one of them out.",
            code="options-exclusive",
        )
    return spec


def _captions(clips: Clips | None) -> int:
    """Return how many times are written between the visual tokens of a clip, at most."""
    if clips is None or clips.frame.patches is None or clips.tokens_per_second is not None:
        return 0
    return -(-clips.frames // clips.depth)


def _tied(checkpoint: Checkpoint) -> bool:
    text = checkpoint.config.get("text_config") or {}
    return bool(checkpoint.config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
