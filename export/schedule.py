"""What an export has to know of a schedule before anything is built."""

from __future__ import annotations

import json

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED, Numbering
from divprune_edge.models.dialects import DIALECTS, option
from divprune_edge.models.families.family import Spec
from divprune_edge.models.schedules import Schedule, find_method, schedule_of
from divprune_edge.models.schedules.parts import parts_of


def plan_schedule(
    asked: str | None, spec: Spec, visual: int, numbering: Numbering | None, dialect: str
) -> Schedule | None:
    """Return what ``--schedule`` asks for, held against the model and the dialect.

    Args:
        asked: a method's name, or the path of a JSON file; None and ``none`` for no schedule.
        spec: of the checkpoint.
        visual: visual tokens of an image that enter the language model, at most.
        numbering: ``--positions``, None where it was not given.
        dialect: of the language model.

    Raises:
        UserError: no such schedule, or what does not go together.
    """
    if asked is None or asked == UNPRUNED:
        return None
    layers, facts = spec.decoder.layers, DIALECTS[dialect]
    found = schedule_of(asked, layers, visual, numbering)
    parts_of(found, find_method(found.method), layers)
    first = found.cuts[0].before
    if first < spec.stacked:
        raise UserError(
            f"The schedule '{found.method}' has a cut before layer {first}, but features of the vision tower are added "
            f"behind the first {spec.stacked} layers: cut before layer {spec.stacked} or later, as with --schedule "
            f"FILE.json, and in that file: {_not_before(spec.stacked, found)}",
            code="schedule-layer",
        )
    if found.numbering == "original" and spec.decoder.rope.axes == 1 and not facts.takes_positions:
        raise UserError(
            f"The schedule '{found.method}' leaves tokens at their positions, which does not go with --dialect "
            f"{dialect}, where a token is at the row of the cache that it fills: add --positions compact, or use "
            f"{option(lambda one: one.takes_positions)}.",
            code="dialect-positions",
        )
    return found


def _not_before(layer: int, schedule: Schedule) -> str:
    """Return a schedule's file with the cuts before ``layer`` moved there."""
    keeps = {max(cut.before, layer): cut.keep for cut in schedule.cuts}
    cuts = [{"before": before, "keep": keep} for before, keep in keeps.items()]
    return json.dumps({"method": schedule.method, "numbering": schedule.numbering, "cuts": cuts})
