"""Pruned against unpruned prefill on a model of the 0.4B class with random weights.

CLIP ViT-L/14-336, a decoder of 24 layers x 1024 (16 heads, 4 key-value heads), 64 text tokens. Both budgets are
measured in turn within one run, so that a drift of the machine hits both; medians are compared with what the
FLOP model predicts. ``--tiny`` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from bench.first_token import unverified
from bench.random_checkpoint import CLIP_L_336, LM_04B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.files import write_whole
from divprune_edge.models.cost import decoder_flops
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.vision import Vision

TEXT_TOKENS = 64


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="divprune-bench-") as folder:
        plan, bundle = _export(Path(folder), arguments.tiny, arguments.prune)
        with plan.checkpoint:
            results = _measure(bundle, plan, arguments.repeats, arguments.threads)
    _show(results)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prune", default="0.9")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _export(folder: Path, tiny: bool, prune: str) -> tuple[ExportPlan, Path]:
    vision, text = (TINY_VISION, TINY_LM) if tiny else (CLIP_L_336, LM_04B)
    checkpoint = Checkpoint(write_random_checkpoint(folder / "checkpoint", vision, text), name="random-0.4B")
    plan = plan_export(checkpoint, selector="divprune", keep=None, prune=prune, precision="fp32")
    output = folder / "bundle"
    export_bundle(plan, output, force=False, verify=unverified, report=ConsoleReporter())
    return plan, output


def _measure(folder: Path, plan: ExportPlan, repeats: int, threads: int) -> dict[str, Any]:
    """Encode one image, then select and prefill with the pruned and the full budget in turn."""
    bundle = Bundle.open(folder)
    backend = OnnxRuntimeBackend(bundle, "cpu", threads)
    size = plan.spec.image_size[0]
    image = ImageInput(np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8), (size, size))
    text = np.random.default_rng(1).integers(0, plan.embedding_rows, TEXT_TOKENS)
    vision = Vision(bundle, backend)
    tokens = vision.encode([image], [])
    samples: dict[str, dict[str, list[float]]] = {}
    for i in range(repeats + 1):
        start = time.perf_counter()
        tokens = vision.encode([image], [])
        encoded = time.perf_counter() - start
        for keep in (plan.keep, plan.spec.tokens):
            selector = bundle.selector(None, keep)
            start = time.perf_counter()
            kept = vision.select(tokens, selector).tokens
            selected = time.perf_counter()
            ids = np.concatenate([text[:4], plan.embedding_rows + np.arange(keep), text[4:]])
            session = backend.session()
            slot = session.add(kept)
            session.extend(slot, ids)
            prefilled = time.perf_counter()
            session.step({slot: int(text[0])})
            decoded = time.perf_counter()
            if i:  # the first round warms up
                times = samples.setdefault(
                    str(keep), {"vision": [], "select": [], "prefill": [], "decode": []}
                )
                for stage, seconds in (
                    ("vision", encoded),
                    ("select", selected - start),
                    ("prefill", prefilled - selected),
                    ("decode", decoded - prefilled),
                ):
                    times[stage].append(1e3 * seconds)
    pruned, full = str(plan.keep), str(plan.spec.tokens)
    flops = {
        keep: decoder_flops(plan.spec.decoder, TEXT_TOKENS + int(keep), plan.vocabulary)
        for keep in (pruned, full)
    }
    medians = {keep: {stage: median(ms) for stage, ms in stages.items()} for keep, stages in samples.items()}
    return {
        "model": "CLIP tower + decoder, random weights",
        "precision": str(plan.precisions),
        "text_tokens": TEXT_TOKENS,
        "threads": threads,
        "repeats": repeats,
        "processor": platform.processor() or platform.machine(),
        "samples_ms": samples,
        "median_ms": medians,
        "prefill_gflop": {keep: value / 1e9 for keep, value in flops.items()},
        "prefill_speedup": medians[full]["prefill"] / medians[pruned]["prefill"],
        "flop_ratio": flops[full] / flops[pruned],
        "prefill_saving": 1 - medians[pruned]["prefill"] / medians[full]["prefill"],
        "flop_saving": 1 - flops[pruned] / flops[full],
    }


def _show(results: dict[str, Any]) -> None:
    print(
        f"{results['repeats']} interleaved rounds, {results['threads']} threads, {results['precision']}; "
        "ms, median [quartiles]"
    )
    print(
        f"{'visual tokens':>14} {'prompt':>7} "
        + " ".join(f"{s:>24}" for s in ("vision", "select", "prefill", "decode"))
    )
    for keep, stages in results["samples_ms"].items():
        cells = []
        for ms in stages.values():
            low, middle, high = quantiles(ms, n=4) if len(ms) > 1 else ms * 3
            cells.append(f"{middle:9.1f} [{low:5.0f}, {high:5.0f}]")
        print(f"{keep:>14} {int(keep) + results['text_tokens']:>7} " + " ".join(f"{c:>24}" for c in cells))
    print(
        f"prefill: {results['prefill_speedup']:.2f}x faster (FLOP model {results['flop_ratio']:.2f}x); "
        f"saves {results['prefill_saving']:.1%} (FLOP model {results['flop_saving']:.1%})"
    )


if __name__ == "__main__":
    main()
