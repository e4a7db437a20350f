"""What a sweep concludes: the Pareto front of accuracy against a cost, and the budget that meets a target."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED
from divprune_edge.runtime.lab.evaluation.results import Row


@dataclass(frozen=True)
class Entry:
    """A row of one bundle; ``precision``, with the schedule if it has one, tells bundles of one model apart.

    ``unpruned`` is what the row without a selector is called.
    """

    precision: str
    row: Row
    unpruned: str = "no pruning"

    @property
    def label(self) -> str:
        """``divprune-58``, or ``no pruning`` and the like."""
        return self.unpruned if self.row.name == UNPRUNED else self.row.method


Cost = Callable[[Entry], float]


def visual_tokens(entry: Entry) -> float:
    """Cost of a method: K, a mean where images have different numbers of rows."""
    return float(entry.row.tokens)


def time_to_first_token(entry: Entry) -> float:
    """Cost of a method: the median TTFT in ms."""
    return entry.row.ttft_ms


def pareto_front(entries: Sequence[Entry], cost: Cost) -> list[Entry]:
    """Return the entries that no other beats in both accuracy and cost, cheapest first.

    Of equals the first is taken. Intervals are not considered: neighbours on the front may well be equal.
    """
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (cost(e), -e.row.all.accuracy)):
        if not front or entry.row.all.accuracy > front[-1].row.all.accuracy:
            front.append(entry)
    return front


def largest_within(entries: Sequence[Entry], target_ms: float) -> Entry | None:
    """Return the entry with the most visual tokens whose TTFT meets the target; of those the most accurate."""
    fitting = [e for e in entries if e.row.ttft_ms <= target_ms and not e.row.reference]
    return max(fitting, key=lambda e: (e.row.keep, e.row.all.accuracy), default=None)


def parse_milliseconds(text: str) -> float:
    """Return ``150ms``, ``0.15s`` or ``150`` in milliseconds.

    Raises:
        UserError: not a time, or not more than 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|)\s*", text)
    value = float(found.group(1)) * (1000 if found.group(2) == "s" else 1) if found else 0.0
    if not value > 0:
        raise UserError(
            f"--target-ttft is '{text}', expected a time such as 150ms or 0.15s.", code="option-invalid"
        )
    return value


def verdict(entries: Sequence[Entry], target_ms: float) -> str:
    """Return one sentence about the target."""
    best = largest_within(entries, target_ms)
    if best is not None:
        share = f"{100 * best.row.all.accuracy:.1f} % right"
        return (
            f"Within {target_ms:g} ms to the first token: {best.label} ({best.row.tokens:.0f} visual tokens, "
            f"{best.precision}, {best.row.ttft_ms:.1f} ms, {share})."
        )
    fastest = min((e for e in entries if not e.row.reference), key=time_to_first_token)
    return (
        f"Nothing here meets {target_ms:g} ms to the first token: the fastest is {fastest.label} "
        f"({fastest.precision}) with {fastest.row.ttft_ms:.1f} ms."
    )
