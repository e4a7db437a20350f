"""A schedule: before which layers of the language model visual tokens leave, and how many stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import Numbering
from divprune_edge.strict_json import read_json

_FIELDS = {"method", "visual_tokens", "cuts", "numbering", "since"}
_ADVICE = "write it as docs/schedules.md shows"


@dataclass(frozen=True)
class Cut:
    """From layer ``before`` on, ``keep`` visual tokens of an image remain, or all where it has no more; it may be 0."""

    before: int
    keep: int


@dataclass(frozen=True)
class Schedule:
    """What leaves where; layers are counted from 0.

    Attributes:
        method: name of what chooses, see :data:`divprune_edge.models.schedules.METHODS`.
        visual: visual tokens of an image that enter the first layer, at most.
        cuts: at least one, in order.
        numbering: whether positions are counted anew after each cut, or stay.
        since: the first layer that a method which sums over layers adds.
    """

    method: str
    visual: int
    cuts: tuple[Cut, ...]
    numbering: Numbering
    since: int = 0

    @property
    def keeps(self) -> tuple[int, ...]:
        """Return how many visual tokens of an image are in each group of layers, the uncut one first."""
        return (self.visual, *(cut.keep for cut in self.cuts))

    def check(self, layers: int) -> None:
        """Check that it can be cut into a model of so many layers.

        Raises:
            UserError: no cuts, layers out of order or out of range, a cut that removes nothing, or one with nothing
                summed before it.
        """
        if not self.cuts:
            raise UserError(
                f"The schedule '{self.method}' removes nothing of {self.visual} visual tokens: leave --schedule out, "
                "or keep more visual tokens before it.",
                code="schedule-without-cuts",
            )
        last, held = 0, self.visual
        for cut in self.cuts:
            if not last < cut.before < layers:
                raise UserError(
                    f"The schedule '{self.method}' has a cut before layer {cut.before}, expected more than {last} and "
                    f"less than {layers}, the number of layers: they are counted from 0, cuts come in their order, and "
                    "one before the first layer is a selector's.",
                    code="schedule-layer",
                )
            if not 0 <= cut.keep < held:
                raise UserError(
                    f"The schedule '{self.method}' keeps {cut.keep} visual tokens from layer {cut.before} on, of "
                    f"{held} before it: each cut has to keep fewer than the one before, and may keep none.",
                    code="schedule-keep",
                )
            last, held = cut.before, cut.keep
        first = self.cuts[0].before
        if not 0 <= self.since < first:
            raise UserError(
                f"The schedule '{self.method}' sums from layer {self.since} on ('since'), but its first cut is before "
                f"layer {first}, where there has to be a sum: expected 0 to {first - 1}.",
                code="schedule-layer",
            )


def read_schedule(path: Path, visual: int, numbering: Numbering, since: int | None) -> Schedule:
    """Read a schedule's file; what it leaves open is as given here.

    ``since`` is None where the method sums nothing, and else no later than the layer before the first cut.

    ::

        {"method": "spatten", "cuts": [{"before": 2, "keep": 288}, {"before": 16, "share": 0.25}],
         "visual_tokens": 576, "numbering": "original", "since": 0}

    A cut says how many visual tokens of an image stay, or which share of those that enter the first layer.
    ``visual_tokens``, where it is there, has to be the number that enter.

    Raises:
        UserError: it cannot be read, or says something else.
    """
    data = read_json(path, code="schedule-invalid", advice=_ADVICE)
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise _refusal(path, "it has no 'method'")
    unknown = sorted(set(data) - _FIELDS)
    if unknown:
        raise _refusal(path, f"'{unknown[0]}' is none of its fields")
    made_for = data.get("visual_tokens", visual)
    if _number(path, "visual_tokens", made_for) != visual:
        raise UserError(
            f"'{path}' is for {made_for} visual tokens per image, but {visual} enter the language model: choose the "
            f"selector's budget with --keep {made_for}, or give shares instead of numbers in it.",
            code="schedule-visual-tokens",
        )
    if data.get("numbering", numbering) not in ("compact", "original"):
        raise _refusal(path, f"'numbering' is {data['numbering']!r}, expected compact or original")
    cuts = data.get("cuts")
    if not isinstance(cuts, list):
        raise _refusal(path, "'cuts' is not a list")
    found = tuple(_cut(path, cut, visual) for cut in cuts)
    if since is None and "since" in data:
        raise _refusal(
            path, f"'since' is for methods that sum over layers, which '{data['method']}' does not"
        )
    usual = min([since or 0, *(max(0, cut.before - 1) for cut in found)])
    return Schedule(
        data["method"],
        visual,
        found,
        data.get("numbering", numbering),
        _number(path, "since", data.get("since", usual)),
    )


def method_of(path: Path) -> str:
    """Return the method that a schedule's file names.

    Raises:
        UserError: as :func:`read_schedule`.
    """
    data = read_json(path, code="schedule-invalid", advice=_ADVICE)
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise _refusal(path, "it has no 'method'")
    return str(data["method"])


def _cut(path: Path, data: Any, visual: int) -> Cut:
    if not isinstance(data, dict) or set(data) not in ({"before", "keep"}, {"before", "share"}):
        raise _refusal(path, f"a cut is {data!r}, expected 'before' and either 'keep' or 'share'")
    before = _number(path, "before", data["before"])
    if "keep" in data:
        return Cut(before, _number(path, "keep", data["keep"]))
    share = data["share"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise _refusal(path, f"'share' is {share!r}, expected at least 0 and below 1")
    return Cut(before, max(1, round(share * visual)) if share else 0)


def _number(path: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _refusal(path, f"'{name}' is {value!r}, expected a number of at least 0")
    return value


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"'{path}' is no schedule ({reason}): {_ADVICE}.", code="schedule-invalid")
