"""What each precision costs in answers: the demo checkpoint's held-out questions, against fp32.

Exports the checkpoint in every precision, asks all the same questions, pruned and not, and counts how many
answers are word for word those of fp32 and how many are right, with 95 % intervals (Wilson).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench.first_token import unverified
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.calibrate import calibrated
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.files import write_whole
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import Dataset, load_dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.runner import Runner
from divprune_edge.runtime.lab.evaluation.scoring import wilson

REFERENCE = "fp32"
PRECISIONS = (REFERENCE, "int8", "int4", "vision=int8,language=int4", "vision=fp32,language=int4")


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.precisions", description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="so many of the held-out images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--dialect", default="onnxruntime")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--calibrate", type=Path, help="images; adds int4 rounded by GPTQ")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, arguments.images)
    answers: dict[str, dict[str, list[tuple[str, bool]]]] = {}
    with tempfile.TemporaryDirectory(prefix="divprune-precisions-") as folder:
        for precision in PRECISIONS:
            bundle = _export(arguments, precision, Path(folder) / precision)
            answers[precision] = ask(bundle, data, arguments.threads)
        if arguments.calibrate:
            name = "vision=fp32,language=int4"
            bundle = _export(arguments, name, Path(folder) / "gptq", calibrate=arguments.calibrate)
            answers[f"{name}, calibrated"] = ask(bundle, data, arguments.threads)
    rows = compare(answers)
    show(rows, data, arguments)
    if arguments.json:
        write_whole(arguments.json, json.dumps({"questions": data.questions, "rows": rows}, indent=2) + "\n")


def _export(
    arguments: argparse.Namespace, precision: str, folder: Path, calibrate: Path | None = None
) -> Bundle:
    with Checkpoint(arguments.model, name="demo") as checkpoint:
        plan = plan_export(
            checkpoint,
            selector="divprune",
            keep=None,
            prune="0.9",
            precision=precision,
            block_size=arguments.block_size,
            dialect=arguments.dialect,
        )
        if calibrate is not None:
            plan = calibrated(plan, calibrate)
        export_bundle(plan, folder, force=False, verify=unverified, report=ConsoleReporter())
    return Bundle.open(folder)


def ask(bundle: Bundle, data: Dataset, threads: int) -> dict[str, list[tuple[str, bool]]]:
    """Return, by method, the answer to every question and whether it is right."""
    pruned = bundle.manifest.selectors[0]
    methods = [
        EvaluatedMethod("none", bundle.manifest.candidates, None),
        EvaluatedMethod(pruned.name, pruned.keep, pruned),
    ]
    runner = Runner(bundle, methods, "cpu", threads)
    answers: dict[str, list[tuple[str, bool]]] = {method.id: [] for method in methods}
    for image in data.images:
        for record in runner.ask(image, methods):
            answers[record.method] += zip(record.answers, record.right, strict=True)
    return answers


def compare(answers: dict[str, dict[str, list[tuple[str, bool]]]]) -> list[dict[str, Any]]:
    """Return one row per precision and method; every share comes with its interval."""
    rows = []
    for precision, methods in answers.items():
        for method, found in methods.items():
            wanted = answers[REFERENCE][method]
            same = sum(a[0] == b[0] for a, b in zip(found, wanted, strict=True))
            right = sum(correct for _, correct in found)
            rows.append(
                {
                    "precision": precision,
                    "method": method,
                    "questions": len(found),
                    "same": same / len(found),
                    "same_interval": wilson(same, len(found)),
                    "right": right / len(found),
                    "right_interval": wilson(right, len(found)),
                }
            )
    return rows


def show(rows: list[dict[str, Any]], data: Dataset, arguments: argparse.Namespace) -> None:
    """Print the table in Markdown."""
    print(
        f"\n{data.questions} questions about {len(data.images)} images; int4 in blocks of "
        f"{arguments.block_size}, dialect {arguments.dialect}\n"
    )
    print("| precision | visual tokens | same answer as fp32 | right |\n|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row[name]:.1%} [{row[f'{name}_interval'][0]:.1%}, {row[f'{name}_interval'][1]:.1%}]"
            for name in ("same", "right")
        ]
        print(f"| {row['precision']} | {row['method']} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
