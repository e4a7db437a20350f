"""A profile as data: what was measured, beside its rooflines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divprune_edge.runtime.lab.profiling.limit import Saving, savings
from divprune_edge.runtime.lab.profiling.measure import DECODE, STAGES, Measured
from divprune_edge.runtime.lab.profiling.roofline import Bound, Machine, bound, costs
from divprune_edge.runtime.lab.profiling.samples import Summary, summarise


@dataclass(frozen=True)
class StageRow:
    """One stage in milliseconds. ``bound`` and ``ratio`` (median over bound) are None where there is no roofline."""

    stage: str
    times: Summary
    bound: Bound | None
    ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        least = None if self.bound is None else {"ms": round(self.bound.ms, 6), "by": self.bound.by}
        return {"stage": self.stage, "ms": self.times.to_dict(), "roofline": least, "ratio": self.ratio}


@dataclass(frozen=True)
class VariantReport:
    """What one variant took: its stages, TTFT, whole answers by their length in tokens; milliseconds."""

    title: str
    bundle: str
    visual_tokens: int
    prompt_tokens: int
    stages: tuple[StageRow, ...]
    first_token: Summary
    totals: Mapping[int, Summary]
    tokens_per_second: float | None
    peak_bytes: int
    cold_first_token: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {
            "title": self.title,
            "bundle": self.bundle,
            "visual_tokens": self.visual_tokens,
            "prompt_tokens": self.prompt_tokens,
            "stages": [row.to_dict() for row in self.stages],
            "ttft_ms": self.first_token.to_dict(),
            "total_ms": {str(tokens): total.to_dict() for tokens, total in self.totals.items()},
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak_bytes,
            "cold_ttft_ms": round(self.cold_first_token, 3),
        }


@dataclass(frozen=True)
class ProfileReport:
    """A whole profile. ``about`` are facts of the run by name; ``notes`` are what is special about this run."""

    about: Mapping[str, str]
    variants: tuple[VariantReport, ...]
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The profile in one sentence."""
        main = self.variants[0]
        if not self.savings:
            longest, total = max(self.totals_of(main))
            return (
                f"The first token of '{main.title}' comes after {main.first_token.median:.0f} ms, an answer of "
                f"{longest} token{'s' * (longest > 1)} takes {total:.0f} ms."
            )
        ends = [self.savings[0], *self.savings[1:][-1:]]
        parts = [
            f"{saving.measured} as fast with {saving.tokens} token{'s' * (saving.tokens > 1)}"
            + (f" (at most {saving.limit})" if saving.limit is not None else "")
            for saving in ends
        ]
        return f"Against '{self.variants[1].title}', '{main.title}' answers {' and '.join(parts)}."

    @staticmethod
    def totals_of(variant: VariantReport) -> list[tuple[int, float]]:
        """Return (tokens, median milliseconds) of a variant's answers."""
        return [(tokens, total.median) for tokens, total in variant.totals.items()]

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        data = {
            "summary": self.summary,
            "about": dict(self.about),
            "variants": [variant.to_dict() for variant in self.variants],
            "savings": [saving.to_dict() for saving in self.savings],
            "notes": list(self.notes),
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def make_report(
    measured: Sequence[Measured],
    lengths: Sequence[int],
    about: Mapping[str, str],
    machine: Machine | None,
    same_machine: bool,
    notes: Sequence[str] = (),
) -> ProfileReport:
    """Return the report of a measurement.

    Args:
        measured: the variant of interest, then what it is compared with, if anything.
        lengths: answers in tokens.
        about: facts of the run.
        machine: what the rooflines are drawn from; None leaves them out.
        same_machine: the measurement ran on that machine, so the two may be divided.
        notes: further ones of this run, before those that follow from the arguments.
    """
    said = [*notes]
    if machine is not None:
        said.append(f"Rooflines of {machine.title}: {machine.source}.")
        if any(m.variant.bundle.manifest.language_model.cost is None for m in measured):
            said.append("A bundle of an older export does not state what its stages cost: export it again.")
        if not same_machine:
            said.append("The rooflines are of another machine than the one measured on: there is no ratio.")
    compared = tuple(savings(measured[0], measured[1], lengths)) if len(measured) > 1 else ()
    variants = tuple(_variant(m, lengths, machine, same_machine) for m in measured)
    return ProfileReport(about, variants, compared, tuple(said))


def _variant(
    measured: Measured, lengths: Sequence[int], machine: Machine | None, same_machine: bool
) -> VariantReport:
    variant, answers = measured.variant, measured.answers
    times = {stage: [answer.stages[i] for answer in answers] for i, stage in enumerate(STAGES)}
    steps = [step for answer in answers for step in answer.steps]
    if steps:
        times[DECODE] = steps
    stated = costs(
        variant.bundle,
        variant.selector,
        measured.prompt_tokens,
        max(lengths),
        measured.tiles,
        measured.picks,
    )
    rows = []
    for stage, values in times.items():
        summary = summarise(values)
        least = bound(stated[stage], machine) if machine is not None and stage in stated else None
        ratio = round(summary.median / least.ms, 3) if least is not None and same_machine else None
        rows.append(StageRow(stage, summary, least, ratio))
    return VariantReport(
        title=variant.title,
        bundle=variant.bundle.path.name,
        visual_tokens=measured.visual_tokens,
        prompt_tokens=measured.prompt_tokens,
        stages=tuple(rows),
        first_token=summarise([answer.first_token for answer in answers]),
        totals={tokens: summarise([answer.total(tokens) for answer in answers]) for tokens in lengths},
        tokens_per_second=round(1000 / summarise(steps).median, 3) if steps else None,
        peak_bytes=measured.peak_bytes,
        cold_first_token=measured.first.first_token,
    )
