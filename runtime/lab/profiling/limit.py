"""What pruning can save at most, by Amdahl's law, and what it saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from divprune_edge.runtime.lab.profiling.measure import STAGES, Measured

MEANING = (
    "The limit is Amdahl's law: the unpruned answer's time over that time without its prefill, as if the pruned "
    "prefill were free. A shorter cache also makes decode steps cheaper, which the limit leaves out: where the "
    "measured factor passes it, the rest comes from there. The measured factor is the median over rounds of one "
    "answer's time over the other's, with its quartiles."
)
_PREFILL = STAGES.index("prefill")


@dataclass(frozen=True)
class Saving:
    """An answer of ``tokens`` tokens: prefill's share without pruning, and end-to-end factors at most and as measured.

    ``limit`` is of what prefill can give; it is None where the variants differ in more than pruning: then the law says
    nothing about them. ``step_ms`` and ``full_step_ms`` are their decode steps, None for one token.
    """

    tokens: int
    dropped: float
    prefill_share: float
    limit: float | None
    measured: float
    low: float
    high: float
    step_ms: float | None
    full_step_ms: float | None

    @property
    def sentence(self) -> str:
        """The line that keeps everyone honest."""
        plural = "s" if self.tokens > 1 else ""
        start = f"Answer of {self.tokens} token{plural}: prefill is {100 * self.prefill_share:.0f} % of this workload"
        measured = f"measured {self.measured:.2f}× [{self.low:.2f}, {self.high:.2f}]"
        if self.limit is None:
            return f"{start}; {measured} end to end."
        most = f"{100 * self.dropped:.0f} % pruning can save at most {self.limit:.2f}× end to end through it"
        if self.step_ms is None or self.full_step_ms is None:
            return f"{start}, so {most}; {measured}."
        return (
            f"{start}, so {most}; {measured} with decode steps of {self.step_ms:.3g} ms instead of "
            f"{self.full_step_ms:.3g} ms."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the sentence."""
        return {**asdict(self), "sentence": self.sentence}


def savings(pruned: Measured, full: Measured, lengths: Sequence[int]) -> list[Saving]:
    """Return how ``full``'s time compares with ``pruned``'s for each answer length in tokens."""
    only_pruning = (
        pruned.variant.bundle == full.variant.bundle
        and full.variant.selector is None
        and pruned.variant.selector is not None
    )
    dropped = 1 - pruned.variant.visual_tokens / full.variant.visual_tokens
    prefill = float(np.median([answer.stages[_PREFILL] for answer in full.answers]))
    found = []
    for tokens in lengths:
        before = [answer.total(tokens) for answer in full.answers]
        after = [answer.total(tokens) for answer in pruned.answers]
        total = float(np.median(before))
        # Medians of parts and of their sum come from different rounds: a prefill is no longer than its answer.
        share = min(prefill / total, 0.999)
        low, middle, high = np.percentile(np.divide(before, after), [25, 50, 75])
        limit = 1 / (1 - share) if only_pruning else None
        steps = [_step(measured, tokens) for measured in (pruned, full)]
        found.append(Saving(tokens, dropped, share, limit, float(middle), float(low), float(high), *steps))
    return found


def _step(measured: Measured, tokens: int) -> float | None:
    """Return the median decode step of answers of ``tokens`` tokens."""
    steps = [step for answer in measured.answers for step in answer.steps[: tokens - 1]]
    return float(np.median(steps)) if steps else None
