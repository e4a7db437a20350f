"""What a task of lmms-eval reports about a method: its own metrics, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import MethodFigures, Record, measured


@dataclass(frozen=True)
class Score:
    """A metric in the task's own unit; ``error`` is one standard error, None where lmms-eval gives none."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


@dataclass(frozen=True, kw_only=True)
class TaskRow(MethodFigures):
    """One method on a task; ``scores`` are named after their metric."""

    questions: int
    scores: dict[str, Score]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain types."""
        return asdict(self)


def task_row(method: EvaluatedMethod, scores: dict[str, Score], records: Sequence[Record]) -> TaskRow:
    """Return the row of a method from what the task reports and what was measured on the way."""
    return TaskRow(questions=len(records), scores=scores, **measured(method, records))


def scores_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Return the numbers among the ``results`` of lmms-eval, ``{task: {"metric,filter": value}}``.

    Names are ``metric``, with its filter in brackets where it has one, and with its task in front where there are
    several. What is no number (a submission that was written, ``N/A``) is left out.
    """
    scores = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or "_stderr" in metric or not _is_number(value):
                continue
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            error = values.get(f"{metric}_stderr,{chosen}", "N/A")
            scores[name if len(results) == 1 else f"{task}: {name}"] = Score(
                float(value), float(error) if _is_number(error) else None
            )
    return scores


def _is_number(value: object) -> bool:
    # NumPy's numbers are not all subclasses of Python's.
    return hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
