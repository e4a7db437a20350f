"""What pruning can save at most (its Amdahl bound), and what it saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.runtime.lab.profiling.measure import STAGES, Measured

_SELECT, _PREFILL = STAGES.index("select"), STAGES.index("prefill")


@dataclass(frozen=True)
class Interval:
    """A median over rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Saving:
    """An answer of ``tokens`` tokens: prefill's share without pruning, and end-to-end factors at most and as measured.

    ``limit`` counts all that pruning changes: the unpruned answer's time over that of the pruned one without its
    prefill and its selection, as if those were free, and with its decode steps, whose cache is shorter. So no round's
    factor is beyond it. It is None where the variants differ in more than pruning, or in none. ``step_ms`` and
    ``full_step_ms`` are their decode steps, None for one token.
    """

    tokens: int
    dropped: float
    prefill_share: float
    limit: Interval | None
    measured: Interval
    step_ms: float | None
    full_step_ms: float | None

    @property
    def sentence(self) -> str:
        """The line that keeps everyone honest."""
        plural = "s" if self.tokens > 1 else ""
        start = f"Answer of {self.tokens} token{plural}: prefill is {100 * self.prefill_share:.0f} % of this workload"
        if self.step_ms is not None and self.full_step_ms is not None:
            start += f", decode steps take {self.step_ms:.3g} ms instead of {self.full_step_ms:.3g} ms"
        if self.limit is None:
            return f"{start}; measured {self.measured} end to end."
        return (
            f"{start}, so {100 * self.dropped:.0f} % pruning can save at most {self.limit} end to end; measured "
            f"{self.measured}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the sentence."""
        return {**asdict(self), "sentence": self.sentence}


def savings(pruned: Measured, full: Measured, lengths: Sequence[int]) -> list[Saving]:
    """Return how ``full``'s time compares with ``pruned``'s for each answer length in tokens."""
    only_pruning = (
        pruned.variant.bundle == full.variant.bundle
        and full.variant.selector is None
        and pruned.visual_tokens < full.visual_tokens
    )
    dropped = 1 - pruned.visual_tokens / full.visual_tokens
    prefill = float(np.median([answer.stages[_PREFILL] for answer in full.answers]))
    found = []
    for tokens in lengths:
        before = [answer.total(tokens) for answer in full.answers]
        after = [answer.total(tokens) for answer in pruned.answers]
        total = float(np.median(before))
        # Medians of parts and of their sum come from different rounds: a prefill is no longer than its answer.
        share = min(prefill / total, 0.999)
        measured = _interval(np.divide(before, after))
        limit = None
        if only_pruning:
            free = [
                answer.total(tokens) - answer.stages[_PREFILL] - answer.stages[_SELECT]
                for answer in pruned.answers
            ]
            limit = _interval(np.divide(before, free))
        steps = [_step(variant, tokens) for variant in (pruned, full)]
        found.append(Saving(tokens, dropped, share, limit, measured, *steps))
    return found


def _interval(factors: npt.NDArray[np.float64]) -> Interval:
    low, middle, high = np.percentile(factors, [25, 50, 75])
    return Interval(float(middle), float(low), float(high))


def _step(measured: Measured, tokens: int) -> float | None:
    """Return the median decode step of answers of ``tokens`` tokens."""
    steps = [step for answer in measured.answers for step in answer.steps[: tokens - 1]]
    return float(np.median(steps)) if steps else None
