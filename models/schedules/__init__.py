"""Every method that prunes inside the language model, once: its reference, its graph, its published schedule.

A new method is one file in this folder and one line in :data:`METHODS`.
"""

from __future__ import annotations

from pathlib import Path

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import Numbering
from divprune_edge.models.schedules.aim import AIM
from divprune_edge.models.schedules.catp import CATP
from divprune_edge.models.schedules.controls import RANDOM, UNIFORM
from divprune_edge.models.schedules.fastv import FASTV
from divprune_edge.models.schedules.fitprune import FITPRUNE
from divprune_edge.models.schedules.lazyllm import LAZYLLM
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch
from divprune_edge.models.schedules.pyramiddrop import PYRAMIDDROP
from divprune_edge.models.schedules.schedule import Cut, Schedule, method_of, read_schedule
from divprune_edge.models.schedules.sparsevlm import SPARSEVLM
from divprune_edge.models.schedules.spatten import SPATTEN
from divprune_edge.models.schedules.todre import TODRE_2
from divprune_edge.models.schedules.transprune import TRANSPRUNE
from divprune_edge.models.schedules.v2drop import V2DROP
from divprune_edge.models.schedules.vla_pruner import VLA_PRUNER

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        PYRAMIDDROP,
        FASTV,
        V2DROP,
        TODRE_2,
        RANDOM,
        UNIFORM,
        TRANSPRUNE,
        AIM,
        SPARSEVLM,
        LAZYLLM,
        CATP,
        VLA_PRUNER,
        SPATTEN,
        FITPRUNE,
    )
}

__all__ = [
    "METHODS",
    "Cut",
    "LayerGraph",
    "Method",
    "Schedule",
    "View",
    "Watch",
    "find_method",
    "schedule_of",
]


def find_method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise UserError(
            f"There is no schedule '{name}'{did_you_mean(name, METHODS)}: known are {', '.join(METHODS)}, or give the "
            "path of a schedule's JSON file.",
            code="schedule-unknown",
        ) from None


def schedule_of(asked: str, layers: int, visual: int, numbering: Numbering | None = None) -> Schedule:
    """Return the schedule that ``--schedule`` asks for: a method's published one, or that of a JSON file.

    Args:
        asked: a method's name, or the path of a file that ends in ``.json``.
        layers: of the language model.
        visual: visual tokens of an image that enter it, at most.
        numbering: how positions go on after a cut; None as the file or the method has it.

    Raises:
        UserError: no such method, a file that is none, or cuts that do not fit the model or the method.
    """
    if asked.endswith(".json"):
        path = Path(asked)
        method = find_method(method_of(path))
        sums = any(watch.summed for watch in method.watches)
        found = read_schedule(path, visual, method.numbering, method.since(layers) if sums else None)
    else:
        method = find_method(asked)
        cuts = method.published(layers, visual)
        found = Schedule(method.name, visual, cuts, method.numbering, method.since(layers))
    if numbering is not None:
        found = Schedule(found.method, found.visual, found.cuts, numbering, found.since)
    found.check(layers)
    some = next((cut for cut in found.cuts if cut.keep), None)
    if method.picks is None and some is not None:
        raise UserError(
            f"The schedule '{method.name}' keeps {some.keep} visual tokens from layer {some.before} on, but it chooses "
            "none: all leave at its cut. Write 0, or name a method that chooses.",
            code="schedule-keep",
        )
    return found
