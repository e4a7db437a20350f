"""Ways to spend a share of the language model's operations on visual tokens: before it, inside it, and both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from divprune_edge.models.cost import layered_flops, visual_by_layer
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.schedules import METHODS, Cut, Schedule


@dataclass(frozen=True)
class Point:
    """A share of the operations, before which layer the cut is, and what divprune leaves where a cut follows."""

    share: float
    layer: int
    entering: int


POINTS = (Point(0.6, 2, 480), Point(0.3, 1, 288), Point(0.1, 1, 128))
METHOD_NAMES = (
    "fastv",
    "pyramiddrop",
    "v2drop",
    "transprune",
    "aim",
    "sparsevlm",
    "catp",
    "vla-pruner",
    "spatten",
    "fitprune",
    "random",
    "uniform",
)
"""With one cut lazyllm is fastv, and spatten, before the second layer, vla-pruner; todre-2 has no count."""


@dataclass(frozen=True)
class Setting:
    """One way to spend a share of the operations: what enters the language model, and what leaves inside it."""

    kind: str
    share: float
    entering: int
    schedule: Schedule | None

    @property
    def name(self) -> str:
        """Tells it from all others."""
        return f"{self.kind}-{self.share:g}-{self.method}"

    @property
    def method(self) -> str:
        """What chooses."""
        return self.schedule.method if self.schedule is not None else "divprune"

    def held(self, layers: int) -> tuple[int, ...]:
        """Return how many visual tokens each layer reads."""
        if self.schedule is None:
            return (self.entering,) * layers
        return visual_by_layer(self.schedule, layers)


def operations(decoder: DecoderSpec, held: Sequence[int]) -> int:
    """Return the operations of layers that read ``held`` visual tokens each."""
    return layered_flops(decoder, held, 0)


def most(decoder: DecoderSpec, all_tokens: int, share: float, held: Callable[[int], list[int]]) -> int | None:
    """Return the most tokens with which ``held`` costs no more than a share of all, None where none do."""
    limit = share * operations(decoder, [all_tokens] * decoder.layers)
    fitting = [n for n in range(1, all_tokens) if operations(decoder, held(n)) <= limit]
    return fitting[-1] if fitting else None


def settings(decoder: DecoderSpec, tokens: int, fitted: dict[float, Schedule]) -> Iterator[Setting]:
    """Yield what is compared; the unpruned model first."""
    yield Setting("unpruned", 1.0, tokens, None)
    for point in POINTS:
        share, before = point.share, point.layer
        alone = most(decoder, tokens, share, lambda n: [n] * decoder.layers)
        assert alone is not None
        yield Setting("divprune alone", share, alone, None)
        for kind, first in (("schedule alone", tokens), ("both", point.entering)):
            start = [first] * before
            left = most(
                decoder, tokens, share, lambda n, start=start: [*start, *[n] * (decoder.layers - len(start))]
            )  # type: ignore[misc]
            if left is None or left >= first:
                continue
            for name in METHOD_NAMES:
                if name == "spatten" and before == 1:
                    continue
                numbering = METHODS[name].numbering
                yield Setting(kind, share, first, Schedule(name, first, (Cut(before, left),), numbering))
        if share in fitted:
            yield Setting("fitted alone", share, tokens, fitted[share])
