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

from bench.random_checkpoint import CLIP_L_336, LM_04B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.llava import export_llava
from divprune_edge.export.plan import Plan, plan_llava
from divprune_edge.export.report import ConsoleReporter
from divprune_edge.manifest import Verification
from divprune_edge.models.cost import decoder_flops
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from divprune_edge.runtime.bundle import Bundle

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
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prune", default="0.9")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _export(folder: Path, tiny: bool, prune: str) -> tuple[Plan, Path]:
    vision, text = (TINY_VISION, TINY_LM) if tiny else (CLIP_L_336, LM_04B)
    checkpoint = Checkpoint(write_random_checkpoint(folder / "checkpoint", vision, text), name="random-0.4B")
    plan = plan_llava(checkpoint, selector="divprune", keep=None, prune=prune, precision="fp32")
    no_check = Verification(status="not verified", reason="benchmark")
    output = folder / "bundle"
    export_llava(plan, output, force=False, verify=lambda plan, folder: no_check, report=ConsoleReporter())
    return plan, output


def _measure(bundle: Path, plan: Plan, repeats: int, threads: int) -> dict[str, Any]:
    raise NotImplementedError


def _show(results: dict[str, Any]) -> None:
    raise NotImplementedError
