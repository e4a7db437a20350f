"""What an export has to know of a schedule before anything is built."""

from __future__ import annotations

from divprune_edge.errors import UserError
from divprune_edge.manifest import Numbering
from divprune_edge.models.dialects import DIALECTS, option
from divprune_edge.models.families.family import Spec
from divprune_edge.models.schedules import Schedule, find_method, schedule_of
from divprune_edge.models.schedules.parts import parts_of


def plan_schedule(asked: str, spec: Spec, visual: int, numbering: Numbering | None, dialect: str) -> Schedule:
    """Return what ``--schedule`` asks for, held against the model and the dialect.

    Args:
        asked: a method's name, or the path of a JSON file.
        spec: of the checkpoint.
        visual: visual tokens of an image that enter the language model, at most.
        numbering: ``--positions``, None where it was not given.
        dialect: of the language model.

    Raises:
        UserError: no such schedule, or what does not go together.
    """
    layers, facts = spec.decoder.layers, DIALECTS[dialect]
    found = schedule_of(asked, layers, visual, numbering)
    parts_of(found, find_method(found.method), layers)
    first = found.cuts[0].before
    if first < spec.stacked:
        raise UserError(
            f"The schedule '{found.method}' has a cut before layer {first}, but features of the vision tower are added "
            f"behind the first {spec.stacked} layers: cut before layer {spec.stacked} or later, by a JSON file.",
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
