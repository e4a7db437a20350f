"""What ``--target`` settles of an export, what it refuses, and whether the result would fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from divprune_edge.errors import UserError, either
from divprune_edge.export.plan import ExportPlan, is_matrix
from divprune_edge.export.planning import DEFAULT_DIALECT
from divprune_edge.export.precision import DEFAULT_PRECISION, activation_type, parse_precisions
from divprune_edge.manifest import TILES_AT_ONCE, Dialect, LayerGroup, read_manifest
from divprune_edge.models.budget import least_capacity
from divprune_edge.models.dialects import DIALECTS, option, row_bytes
from divprune_edge.models.memory import (
    Elements,
    Forecast,
    Need,
    forecast,
    human,
    prefill_activations,
    refusal,
    tile_buffers,
)
from divprune_edge.models.targets import TARGETS, Target, find_target
from divprune_edge.models.tiles import SOURCE_BYTES, picks_of, row_width, tiles_of


def settle(name: str | None, dialect: str | None, precision: str | None) -> tuple[str, str]:
    """Return dialect and precision of an export: what is asked for, else the target's, else the defaults.

    Args:
        name: ``--target``.
        dialect: ``--dialect``, None where not given.
        precision: ``--precision``, None where not given.

    Raises:
        UserError: there is no such target, or it cannot run what is asked for.
    """
    target = None if name is None else find_target(name)
    usual = DEFAULT_PRECISION if target is None else target.precision
    # Whole from here on: a graph that is not named takes what it would have had.
    chosen = usual if precision is None else str(parse_precisions(precision, default=usual))
    if target is None:
        return dialect or DEFAULT_DIALECT, chosen
    if dialect is not None:
        _check_dialect(target, dialect)
    if precision is not None:
        _check_precision(target, chosen, dialect or target.dialect)
    return dialect or target.dialect, chosen


def dialects_of(target: Target) -> tuple[Dialect, ...]:
    """Return the dialects that a target can run, its own first."""
    found = [
        facts.name
        for facts in DIALECTS.values()
        if target.tensorrt is None or facts.taken_by(target.backend, target.tensorrt)
    ]
    return tuple(sorted(found, key=lambda name: name != target.dialect))


def _check_dialect(target: Target, dialect: str) -> None:
    possible = dialects_of(target)
    if dialect in DIALECTS and dialect not in possible:  # an unknown one is refused by name elsewhere
        raise UserError(
            f"--dialect {dialect} cannot run on --target {target.name}: "
            f"{DIALECTS[dialect].refusal.format(software=target.software)}; leave --dialect out or give "
            f"{either(possible)}.",
            code="dialect-with-target",
        )


def _check_precision(target: Target, precision: str, dialect: str) -> None:
    chosen = parse_precisions(precision)
    if target.backend == "cpu":
        return
    for facts in chosen.facts:
        if target.backend in facts.refusals:
            why = facts.refusals[target.backend]
            raise UserError(
                f"--precision {precision} cannot run on --target {target.name}: {why}; leave --precision out for "
                f"{target.precision}.",
                code="precision-with-target",
            )
    kernels = DIALECTS[dialect].cuda if dialect in DIALECTS else frozenset()
    dtype = activation_type(chosen.language, half=True)
    if kernels and dtype not in kernels:
        raise UserError(
            f"--precision {precision} cannot run on --target {target.name} in dialect {dialect}: its attention for "
            f"CUDA takes {either(kernels)} only; leave --precision out for {target.precision}, or add "
            f"{option(lambda one: dtype in one.cuda)}.",
            code="precision-with-dialect",
        )


def forecast_plan(plan: ExportPlan, target: Target) -> Forecast | None:
    """Return what a planned bundle would take on a target, None where that has no memory of its own."""
    decoder, rows = plan.spec.decoder, plan.positions
    element = np.dtype(plan.language_dtype).itemsize
    vision, language = plan.graph_bytes
    facts = plan.dialect.facts
    row = row_bytes(decoder.kv_heads, decoder.head_dim, element)
    groups = [
        LayerGroup(part.first, part.layers, capacity, fewer)
        for part, capacity, fewer in zip(plan.parts, plan.capacities, plan.fewer, strict=True)
    ]
    # Where new rows are handed out, cache and new keys are two parts.
    keys = rows + facts.rows_beside(rows)
    sizes = (decoder.hidden, decoder.intermediate, decoder.heads)
    need = Need(
        vision=vision,
        language=language,
        cache=facts.cache_bytes(groups, row, rows),
        activations=prefill_activations(*sizes, rows, keys, element)
        + facts.rows_beside(rows) * decoder.layers * row
        + _tiles(plan, np.dtype(plan.token_dtype).itemsize),
        rows=rows,
    )
    return forecast(target, need)


def _tiles(plan: ExportPlan, element: int) -> int:
    """Return the bytes of a run of the encoder, and of what the tokens of all tiles are held in."""
    spec, tiles = plan.spec, tiles_of(plan.spec)
    varying = spec.image_size is None
    at_once = 1 if varying else min(TILES_AT_ONCE, tiles)
    held = at_once * spec.encoder_activations(element)
    if spec.rows is None:
        return held
    row = row_width(spec) * element
    group = plan.candidates * (row + plan.sources * SOURCE_BYTES)
    every = max(spec.tokens, spec.rows.most_of_clip) if varying else tiles * spec.tokens
    stacked = every * row if tiles > at_once else 0
    return held + tile_buffers(at_once * spec.tokens * row, stacked, group, picks_of(spec, plan.per))


def target_of(bundle: Path, name: str | None) -> Target:
    """Return the target called ``name``, or the one that a bundle was made for.

    Raises:
        UserError: there is none, or neither says which.
    """
    if name is None:
        name = read_manifest(bundle).target
    if name is None:
        raise UserError(
            f"'{bundle}' was exported for no particular target: give one of {', '.join(TARGETS)} by --target.",
            code="target-not-given",
        )
    return find_target(name)


def announce_memory(plan: ExportPlan) -> None:
    """Print what to expect of the memory of a plan's target, if it has one.

    Raises:
        UserError: see :func:`check_memory`.
    """
    sentence = None if plan.target is None else check_memory(plan, find_target(plan.target))
    if sentence is not None:
        Console(markup=False, highlight=False, soft_wrap=True).print(sentence)


def check_memory(plan: ExportPlan, target: Target) -> str | None:
    """Return a sentence of what to expect of the memory, None where there is nothing to say.

    Raises:
        UserError: weights and cache alone are more than the device has.
    """
    known = forecast_plan(plan, target)
    if known is None:
        return None
    if known.hopeless:
        raise UserError(
            refusal(known, elements_of(plan), least_capacity(plan.visual_tokens, plan.spec.decoder.context)),
            code="target-memory-too-small",
        )
    if not known.fits:
        sentence = refusal(
            known, elements_of(plan), least_capacity(plan.visual_tokens, plan.spec.decoder.context)
        )
        return f"It will hardly fit. {sentence}"
    swap = f"; building its engines needs {human(known.swap)} of swap" if known.swap else ""
    return f"Forecast (E2): {human(known.total)} of {human(known.available)} on {target.title}{swap}."


def elements_of(plan: ExportPlan) -> Elements:
    """Count a plan's weights by what may become of them."""
    shapes = plan.names.parameters(plan.spec, plan.embedding_rows, plan.vocabulary)
    vision = matrices = rest = 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if plan.names.in_encoder(name):
            vision += count
        elif is_matrix(name, shape) and name != plan.names.head:
            matrices += count
        else:
            rest += count
    return Elements(vision, matrices, rest)
