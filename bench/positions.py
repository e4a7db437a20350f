"""What a pruned token's position says: the demo's held-out questions with ``--positions compact`` and ``original``.

Exports the checkpoint in both numberings, asks all the same questions, and counts right answers by type of question
(95 %, Wilson), and by how much ``original`` is ahead (95 %, bootstrap over images, paired).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.first_token import unverified
from divprune_edge.export.add_selector import add_selector
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.files import write_whole
from divprune_edge.manifest import Numbering
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import Dataset, load_dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod, choose_methods
from divprune_edge.runtime.lab.evaluation.pairs import compare
from divprune_edge.runtime.lab.evaluation.results import Record, Row, summarise
from divprune_edge.runtime.lab.evaluation.runner import Runner

SELECTORS = ("divprune", "uniform")
MODES: tuple[Numbering, ...] = ("compact", "original")
ALL = "all"


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.positions", description=__doc__)
    parser.add_argument("--images", type=int, help="so many of the held-out images; all by default")
    parser.add_argument("--keep", default="144,58,29", help="numbers of visual tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", default="demo")
    parser.add_argument(
        "--kinds", default="where,at,relation", help="types of question in the table, after all"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, arguments.images)
    budgets = [int(keep) for keep in arguments.keep.split(",")]
    with tempfile.TemporaryDirectory(prefix="divprune-positions-") as folder:
        bundles = {mode: _bundle(arguments.model, mode, budgets, Path(folder) / mode) for mode in MODES}
        methods, records = ask(bundles, data, arguments.threads)
    results = {
        "images": len(data.images),
        "questions": data.questions,
        "rows": compared(records, methods, data),
    }
    show(results["rows"], [ALL, *arguments.kinds.split(",")])
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=1) + "\n")


def _bundle(model: Path, mode: Numbering, budgets: Sequence[int], folder: Path) -> Bundle:
    with Checkpoint(model, name="demo") as checkpoint:
        plan = plan_export(
            checkpoint, selector=SELECTORS[0], keep=budgets[0], prune=None, precision="fp32", numbering=mode
        )
        export_bundle(plan, folder, force=False, verify=unverified, report=ConsoleReporter())
    for name in SELECTORS:
        for keep in budgets:
            if (name, keep) != (SELECTORS[0], budgets[0]):
                add_selector(folder, name, keep=keep, prune=None, force=False, verify=False)
    return Bundle.open(folder)


def ask(
    bundles: Mapping[Numbering, Bundle], data: Dataset, threads: int
) -> tuple[list[EvaluatedMethod], dict[Numbering, list[Record]]]:
    """Ask every question with every selector of the bundles, and without; return the methods, and what came of it."""
    methods = {
        mode: [one for one in choose_methods(bundle) if not one.is_reference]
        for mode, bundle in bundles.items()
    }
    runners = {mode: Runner(bundle, methods[mode], "cpu", threads) for mode, bundle in bundles.items()}
    records: dict[Numbering, list[Record]] = {mode: [] for mode in bundles}
    for number, image in enumerate(data.images, start=1):
        for mode, runner in runners.items():
            records[mode] += runner.ask(image, methods[mode])
        if number % 50 == 0:
            print(f"{number} of {len(data.images)} images", flush=True)
    return methods[MODES[0]], records


def compared(
    records: Mapping[Numbering, Sequence[Record]], methods: Sequence[EvaluatedMethod], data: Dataset
) -> list[dict[str, Any]]:
    """Return one row per method and type of question: right answers by mode, and by how much ``original`` is ahead."""
    rows = {
        mode: {row.method: row for row in summarise(found, methods, data)} for mode, found in records.items()
    }
    found = []
    for method in methods:
        ours = {mode: rows[mode][method.id] for mode in MODES}
        for kind in (ALL, *ours[MODES[0]].kinds):
            first, second = ({r.image: r for r in _of(records[mode], method, kind, data)} for mode in MODES)
            ahead = compare("original", "compact", second, first)
            found.append(
                {
                    "method": method.id,
                    "kind": kind,
                    "questions": _share(ours[MODES[0]], kind).questions,
                    **{mode: _share(ours[mode], kind).accuracy for mode in MODES},
                    **{f"{mode}_interval": _share(ours[mode], kind).interval for mode in MODES},
                    "ahead": ahead.difference,
                    "ahead_interval": (ahead.low, ahead.high),
                }
            )
    return found


def _share(row: Row, kind: str) -> Any:
    return row.all if kind == ALL else row.kinds[kind]


def _of(records: Sequence[Record], method: EvaluatedMethod, kind: str, data: Dataset) -> list[Record]:
    """Return a method's records with the questions of one type alone."""
    kinds = {image.name: [question.kind for question in image.questions] for image in data.images}
    found = []
    for record in records:
        asked = zip(record.right, kinds[record.image], strict=True)
        right = [right for right, one in asked if kind in (ALL, one)]
        if record.method == method.id and right:
            found.append(replace(record, right=right))
    return found


def show(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Print some types of question as a table in Markdown: percent right, and percentage points."""
    print(f"| method | numbering | {' | '.join(kinds)} |\n|---|---|{'---:|' * len(kinds)}")
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["kind"]] = row
    for method, of in by_method.items():
        for mode in MODES:
            cells = (_percent(of[kind][mode], of[kind][f"{mode}_interval"]) for kind in kinds)
            print(f"| {method} | {mode} | {' | '.join(cells)} |")
        cells = (_percent(of[kind]["ahead"], of[kind]["ahead_interval"], sign="+") for kind in kinds)
        print(f"| | ahead by | {' | '.join(cells)} |")


def _percent(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = (format(100 * end, f"{sign}.1f") for end in interval)
    return f"{100 * value:{sign}.1f} [{low}, {high}]".replace("-", "−")


if __name__ == "__main__":
    main()
