"""What ``--encoder-cut`` costs in answers, and saves in time.

Answers: the demo's questions with several cuts of its four layers, at one budget (95 %, Wilson). Time: an image of a
CLIP ViT-L/14-336 with a 0.4B-class decoder, random weights, int8, in turn; each stage's median, and the median over the
rounds of how much sooner the first token is there than without a cut.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.first_token import unverified
from bench.prepare import FULL, TINY, prepare
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.files import write_whole
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
from divprune_edge.runtime.lab.evaluation.methods import choose_methods
from divprune_edge.runtime.lab.evaluation.results import summarise
from divprune_edge.runtime.lab.evaluation.runner import Runner
from divprune_edge.runtime.pipeline import Pipeline

KEEP = 58
QUESTION = "What is in the picture? " * 10
STAGES = ("vision", "select", "prefill")


def main() -> None:
    """Measure, print tables, write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.encoder_cut", description=__doc__)
    parser.add_argument("--images", type=int, help="so many of the held-out images; all by default")
    parser.add_argument("--cuts", default="3:288,3:144,2:288,2:144,1:288", help="of the demo's four layers")
    parser.add_argument(
        "--large-cuts", default="16:144,12:288,12:144,8:144", help="of the 23 layers of ViT-L"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes for the times: does it run at all?")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="divprune-encoder-cut-") as folder:
        results = {
            "answers": answers(arguments, Path(folder)),
            "times": times(arguments, Path(folder)),
        }
    show(results)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=1) + "\n")


def _cuts(asked: str) -> list[str | None]:
    return [None, *(cut for cut in asked.split(",") if cut)]


def answers(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return how many questions are answered right with each cut, unpruned and pruned."""
    data, found = load_dataset("demo", arguments.images), []
    for cut in _cuts(arguments.cuts):
        bundle = Bundle.open(
            _bundle(CHECKPOINT, cut, "fp32", "portable", folder / f"demo-{cut}".replace(":", "-"))
        )
        methods = [one for one in choose_methods(bundle) if not one.is_reference]
        runner = Runner(bundle, methods, "cpu", arguments.threads)
        records = [record for image in data.images for record in runner.ask(image, methods)]
        for row in summarise(records, methods, data):
            found.append(
                {
                    "cut": cut,
                    "method": row.method,
                    "questions": row.all.questions,
                    "right": row.all.accuracy,
                    "interval": row.all.interval,
                    "kinds": {kind: share.accuracy for kind, share in row.kinds.items()},
                }
            )
    return found


def times(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return each stage's median in milliseconds, and the FLOPs of the encoder against those without a cut."""
    sizes = TINY if arguments.tiny else FULL
    checkpoint = prepare(sizes, folder, ())
    cuts: list[str | None] = [None, "1:100"] if arguments.tiny else _cuts(arguments.large_cuts)
    bundles = [
        _bundle(checkpoint, cut, "int8", "onnxruntime", folder / f"large-{i}") for i, cut in enumerate(cuts)
    ]
    pipelines = [Pipeline(bundle, threads=arguments.threads) for bundle in bundles]
    size = sizes.vision["image_size"]
    image = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    rounds: list[list[dict[str, float]]] = []
    for turn in range(arguments.rounds + 1):
        measured = [dict(one.ask(image, QUESTION, max_tokens=1).timings_ms) for one in pipelines]
        rounds += [measured] * bool(turn)  # the first one warms up
    flops = [one.bundle.manifest.vision_encoder.flops or 0 for one in pipelines]
    firsts = [[sum(one[stage] for stage in STAGES) for one in measured] for measured in rounds]
    return [
        {
            "cut": cut,
            **{stage: _median(measured[i][stage] for measured in rounds) for stage in STAGES},
            "first_token": _median(first[i] for first in firsts),
            "sooner": _median(first[0] / first[i] for first in firsts),
            "encoder_flops": flops[i] / flops[0],
        }
        for i, cut in enumerate(cuts)
    ]


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def _bundle(model: Path, cut: str | None, precision: str, dialect: str, folder: Path) -> Path:
    with Checkpoint(model, name=model.name) as checkpoint:
        plan = plan_export(
            checkpoint,
            selector="divprune",
            keep=KEEP,
            prune=None,
            precision=precision,
            dialect=dialect,
            encoder_cut=cut,
        )
        export_bundle(plan, folder, force=False, verify=unverified, report=ConsoleReporter())
    return folder


def show(results: dict[str, Sequence[dict[str, Any]]]) -> None:
    """Print both as tables."""
    print("\n| cut | method | right, % |\n|---|---|---|")
    for row in results["answers"]:
        low, high = (100 * end for end in row["interval"])
        print(f"| {row['cut'] or '–'} | {row['method']} | {100 * row['right']:.1f} [{low:.1f}, {high:.1f}] |")
    print("\n| cut | encoder's FLOPs | vision, ms | select | prefill | first token | sooner |")
    print("|---|---|---|---|---|---|---|")
    for row in results["times"]:
        numbers = " | ".join(f"{row[name]:,.0f}" for name in (*STAGES, "first_token"))
        print(f"| {row['cut'] or '–'} | {row['encoder_flops']:.2f} | {numbers} | {row['sooner']:.2f}× |")


if __name__ == "__main__":
    main()
