"""What a schedule's method reads of the layers: the graphs' numbers against its reference on transformers' layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.verify.comparison import Tolerance, at_most
from divprune_edge.export.verify.graphs import LanguageGraph
from divprune_edge.export.verify.language import PromptCase, sample_prompts
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.manifest import Check
from divprune_edge.models.schedules import find_method
from divprune_edge.models.schedules.method import View, query_rows

Array = npt.NDArray[Any]


def check_scores(
    plan: ExportPlan,
    graph: LanguageGraph,
    oracle: Oracle,
    kept: Array,
    tolerance: Tolerance,
    report: Callable[[str], None],
) -> list[Check]:
    """Compare them on a question about one image, of which nothing leaves: each watch at each cut.

    The error is relative to the largest number of a watch at a cut. Which tokens stay is NumPy's choice from these.
    """
    if plan.schedule is None or not find_method(plan.schedule.method).watches:
        return []
    report("what the schedule reads")
    case = sample_prompts(plan, kept)[0]
    ids = case.ids(plan.embedding_rows)
    visual = np.flatnonzero(ids >= plan.embedding_rows)
    text = np.flatnonzero(ids < plan.embedding_rows)
    places = case.positions(plan.spec.decoder.rope.axes, 0)
    found = graph.read(
        ids[None],
        case.table[None],
        None if places is None else places[:, None],
        {
            "visual_rows": visual,
            "key_rows": np.arange(ids.size),
            "past_rows": np.zeros(1, np.int64),
            **{
                f"query_rows.{name}": query_rows(name, visual, text)
                for name in ("last", "asked", "text", "visual", "all")
            },
        },
    )
    wanted = _wanted(plan, oracle, case, places, visual, text)
    errors = {
        f"'{name}' before layer {part.first + part.layers}": _error(found.get((i, name)), numbers)
        for i, part in enumerate(plan.parts)
        for name, numbers in wanted[i].items()
    }
    worst = max(errors, key=lambda name: errors[name])
    detail = f"{worst} is the worst of {len(errors)}"
    return [at_most("schedule", "scores", errors[worst], tolerance.error, unit="relative", detail=detail)]


def _wanted(
    plan: ExportPlan,
    oracle: Oracle,
    case: PromptCase,
    places: Array | None,
    visual: Array,
    text: Array,
) -> list[dict[str, Array]]:
    """Return what the method's references say for each graph of the chain, by watch."""
    layers = oracle.layers(case.embeddings(oracle), places, plan.spec.stacked)
    decoder = plan.spec.decoder
    cosine, sine = _angles(plan, np.arange(len(layers[0].before))[None] if places is None else places)
    wanted: list[dict[str, Array]] = []
    for part in plan.parts:
        numbers: dict[str, Array] = {}
        for watch, number in part.readings:
            layer, inside = layers[number], number in part.numbers
            q, k = (
                _turned(x.reshape(len(x), -1, decoder.head_dim).transpose(1, 0, 2), cosine, sine)
                for x in (layer.queries, layer.keys)
            )
            view = View(
                q,
                k,
                layer.before,
                layer.middle if inside else None,
                layer.after if inside else None,
                visual,
                text,
                layer.normed,
            )
            numbers[watch.name] = numbers.get(watch.name, 0) + watch.reference(view)
        wanted.append(numbers)
    return wanted


def _angles(plan: ExportPlan, places: Array) -> tuple[Array, Array]:
    """Return cosine and sine [n, head_dim / 2] of positions [axes, n]."""
    decoder = plan.spec.decoder
    axis = decoder.rope.axis_of(decoder.head_dim)
    mine = places[axis if len(places) > 1 else np.zeros_like(axis)]
    angles = mine.T.astype(np.float32) * decoder.rope.inverse_frequencies(decoder.head_dim)
    return np.cos(angles), np.sin(angles)


def _turned(x: Array, cosine: Array, sine: Array) -> Array:
    """Return heads [heads, n, head_dim] behind the rotary embedding."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def _error(found: Array | None, wanted: Array) -> float:
    if found is None or found.shape != wanted.shape:
        return float("inf")
    most = max(float(np.abs(wanted).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(found.astype(np.float64) - wanted).max() / most)
