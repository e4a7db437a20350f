"""Ways to keep a KV cache: bytes per decode step on a Jetson (arithmetic), and the dialects on this CPU (measured).

``--table`` prints the arithmetic of ``docs/kv-cache.md``. Without it a decoder of the 0.1B class with random weights
is exported in the dialects, and a prompt of 58 visual and 60 text tokens is prefilled and 64 steps are decoded with
each in turn within one round, so that a drift of the machine hits all; what is compared are ratios within a round.
One thread, and the processor's time rather than the clock's: a machine with other work to do still measures this.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from bench.first_token import unverified
from bench.random_checkpoint import TINY_VISION, write_random_checkpoint
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.planning import plan_export
from divprune_edge.export.reporter import ConsoleReporter
from divprune_edge.files import write_whole
from divprune_edge.models.decoder import read_decoder
from divprune_edge.models.kv_cache import SCHEMES, step_weight_bytes
from divprune_edge.models.targets import find_target
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from divprune_edge.runtime.bundle import Bundle

LM_01B = {
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 8192,
    "rms_norm_eps": 1e-5,
}
KEEP, TEXT_TOKENS, STEPS = 58, 60, 64

LLAVA_7B = {"model_type": "llama", "vocab_size": 32064}
"""The decoder of LLaVA-1.5-7B: the defaults of its config class, and 32064 rows."""
QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
"""Qwen2-0.5B, from its config.json."""
MODELS = {"LLaVA-1.5-7B": LLAVA_7B, "Qwen2-0.5B": QWEN2_05B}
BOARDS = ("orin-nano-8gb", "agx-orin-64gb")
LIVE, CAPACITIES, BLOCK = 200, (256, 512), 128


def main() -> None:
    """Print the table, or measure, print and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="arithmetic alone")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--capacity", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table()))
        return
    with tempfile.TemporaryDirectory(prefix="divprune-bench-") as folder:
        results = measure(Path(folder), arguments.precision, arguments.capacity, arguments.rounds)
    show(results)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=2) + "\n")


def table() -> list[str]:
    """Return the rows of the Markdown table in ``docs/kv-cache.md``."""
    boards = [find_target(name) for name in BOARDS]
    names = [board.title.partition(",")[0].removeprefix("Jetson ") for board in boards]
    rows = [
        f"| decoder | cache | capacity | MB per step | {' | '.join(f'ms on {name}' for name in names)} |",
        "|---|---|--:|--:" + "|--:" * len(boards) + "|",
    ]
    for model, config in MODELS.items():
        spec = read_decoder(config)
        for scheme in SCHEMES:
            for capacity in CAPACITIES if scheme.static else (None,):
                moved = scheme.bytes(spec, LIVE, capacity or 0)
                rows.append(
                    _row(model, scheme.title, str(capacity or "–"), moved, [b.bandwidth for b in boards])
                )
        weights = step_weight_bytes(spec, spec.vocabulary, block_size=BLOCK)
        rows.append(
            _row(
                model,
                f"*for comparison: int4 weights, blocks of {BLOCK}*",
                "",
                weights,
                [b.bandwidth for b in boards],
            )
        )
    return rows


def _row(model: str, title: str, capacity: str, moved: int, bandwidths: Sequence[float | None]) -> str:
    times = " | ".join(f"{moved / (bandwidth or np.nan) * 1e3:.2f}" for bandwidth in bandwidths)
    return f"| {model} | {title} | {capacity} | {moved / 1e6:,.1f} | {times} |"


def measure(folder: Path, precision: str, capacities: Sequence[int], rounds: int) -> dict[str, Any]:
    """Return milliseconds of prefill and of a decode step, per dialect and round."""
    checkpoint = write_random_checkpoint(folder / "checkpoint", TINY_VISION, LM_01B)
    backends = {
        name: _backend(checkpoint, folder / name.replace(" ", "-"), name, precision)
        for name in (
            "portable",
            *(f"{dialect} {rows}" for dialect in ("static", "decomposed") for rows in capacities),
        )
    }
    samples: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in backends}
    random = np.random.default_rng(0)
    order = list(backends)
    for i in range(rounds + 1):
        random.shuffle(order)
        for name in order:
            prefill, decode = _run(*backends[name])
            if i:  # the first round warms up
                samples[name]["prefill"].append(prefill)
                samples[name]["decode"].append(decode)
    return {
        "decoder": LM_01B,
        "precision": precision,
        "threads": 1,
        "clock": "processor time",
        "prompt": KEEP + TEXT_TOKENS,
        "steps": STEPS,
        "samples_ms": samples,
    }


def _backend(checkpoint: Path, folder: Path, name: str, precision: str) -> tuple[OnnxRuntimeBackend, Bundle]:
    dialect, _, capacity = name.partition(" ")
    with Checkpoint(checkpoint, name="random-0.1B") as opened:
        plan = plan_export(
            opened,
            selector="divprune",
            keep=KEEP,
            prune=None,
            precision=precision,
            dialect=dialect,
            capacity=int(capacity) if capacity else None,
        )
        export_bundle(plan, folder, force=False, verify=unverified, report=ConsoleReporter())
    bundle = Bundle.open(folder)
    return OnnxRuntimeBackend(bundle, "cpu", threads=1), bundle


def _run(backend: OnnxRuntimeBackend, bundle: Bundle) -> tuple[float, float]:
    """Return milliseconds of one prefill, and the median of the decode steps."""
    language, width = bundle.manifest.language_model, bundle.manifest.vision_encoder.width
    random = np.random.default_rng(1)
    text = random.integers(0, language.embedding_rows, TEXT_TOKENS).tolist()
    visual = random.standard_normal((1, KEEP, width)).astype(bundle.manifest.token_dtype)
    ids = [*text[:4], *range(language.embedding_rows, language.embedding_rows + KEEP), *text[4:]]
    session = backend.session()
    slot = session.add(backend.to_device(visual))
    start = time.process_time()
    session.extend(slot, ids)
    prefill = time.process_time() - start
    steps = []
    for token in (text * 2)[:STEPS]:
        start = time.process_time()
        session.step({slot: token})
        steps.append(time.process_time() - start)
    return 1e3 * prefill, 1e3 * median(steps)


def show(results: dict[str, Any]) -> None:
    """Print medians, and each dialect's ratio to ``portable`` within a round as median [quartiles]."""
    samples = results["samples_ms"]
    print(
        f"{results['precision']}, one thread, processor time; a prompt of {results['prompt']}, "
        f"{results['steps']} steps; x: to portable in the same round, median [quartiles]"
    )
    for name, stages in samples.items():
        cells = []
        for stage, ms in stages.items():
            ratios = [a / b for a, b in zip(ms, samples["portable"][stage], strict=True)]
            low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            cells.append(f"{stage} {median(ms):8.2f} ms, x {middle:.2f} [{low:.2f}, {high:.2f}]")
        print(f"{name:>16}  {'   '.join(cells)}")


if __name__ == "__main__":
    main()
