"""An image of five tiles on a model of LLaVA-1.6-7B's size: CLIP-L-336, 2,928 rows of which divprune keeps 288.

Random weights, in int8 (encoder) and int4 (language model), dialect ``onnxruntime``, ONNX Runtime on the CPU. Measured
in a process of its own, pruned and unpruned in turn, after a pruned answer that is not counted; beside the time that
passes, the time that the processor works, which says more where other programs run. ``--tiny`` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.export import check_disk
from bench.random_checkpoint import CLIP_L_336, LM_7B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.files import write_whole

STAGES = ("preprocess", "vision", "assemble", "select", "prefill")
TEXT_TOKENS = 64
KEEP = 288


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    arguments = _arguments()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.threads, arguments.rounds)))
        return
    check_disk(arguments.folder, 2**25 if arguments.tiny else 14 * 2**30)
    with tempfile.TemporaryDirectory(prefix="divprune-tiles-", dir=arguments.folder) as name:
        bundle = export(Path(name), tiny=arguments.tiny)
        options = ("--threads", str(arguments.threads), "--rounds", str(arguments.rounds))
        command = (sys.executable, "-m", "bench.tiles", "--measure", str(bundle), *options)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    show(results)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to use")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def export(folder: Path, *, tiny: bool) -> Path:
    """Write the checkpoint and its bundle, and return the bundle's folder; the checkpoint is removed."""
    from divprune_edge.export.bundle import export_bundle
    from divprune_edge.export.checkpoint import Checkpoint
    from divprune_edge.export.plan import ExportPlan, plan_export
    from divprune_edge.export.reporter import ConsoleReporter
    from divprune_edge.manifest import Verification

    def unverified(plan: ExportPlan, folder: Path) -> Verification:
        return Verification(status="not verified", reason="benchmark")

    vision, text = CLIP_L_336, LM_7B
    if tiny:
        vision = TINY_VISION | {"image_size": 48}
        text = TINY_LM | {"hidden_size": 128, "intermediate_size": 256}
    write_random_checkpoint(folder / "checkpoint", vision, text, tiled=True)
    with Checkpoint(folder / "checkpoint", name="random") as opened:
        plan = plan_export(
            opened,
            selector="divprune",
            keep=None if tiny else KEEP,
            prune="0.9" if tiny else None,
            precision="vision=int8,language=int4",
            dialect="onnxruntime",
            block_size=32 if tiny else 128,
        )
        export_bundle(plan, folder / "bundle", force=False, verify=unverified, report=ConsoleReporter())
    shutil.rmtree(folder / "checkpoint")
    return folder / "bundle"


def measure(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Answer with the first token, pruned and unpruned in turn."""
    from PIL import Image

    from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.profiling.memory import peak_bytes
    from divprune_edge.runtime.vision import Candidates, Vision, groups_of

    bundle = Bundle.open(folder)
    manifest, backend = bundle.manifest, OnnxRuntimeBackend(bundle, "cpu", threads)
    pruned = bundle.selector()
    backend.load(pruned)
    vision, table = Vision(bundle, backend), manifest.language_model.embedding_rows
    side = 2 * manifest.vision_encoder.image_height
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    text = np.random.default_rng(1).integers(4, 30, TEXT_TOKENS)
    facts: dict[str, Any] = {}

    def answer(selector: Any) -> list[list[float]]:
        clocks = [[time.perf_counter()], [time.process_time()]]

        def lap() -> None:
            clocks[0].append(time.perf_counter())
            clocks[1].append(time.process_time())

        (image,) = vision.read([picture])
        lap()
        tiles = vision.tiles(image.pixels)
        lap()
        groups = groups_of(manifest, image)
        rows = backend.assemble(tiles, groups)
        lap()
        whole = Candidates(rows, groups.valid, groups.reading, (range(len(groups.valid)),))
        seen = vision.select(whole, selector)
        lap()
        session = backend.session()
        session.extend(session.add(seen.tokens), [*text[:4], *(table + seen.rows), *text[4:]])
        lap()
        facts.update(tiles=len(image.pixels), rows=int(groups.valid.sum()))
        return [[1000 * (after - before) for before, after in pairwise(clock)] for clock in clocks]

    answer(pruned)
    samples: dict[str, list[list[float]]] = {"pruned": [], "full": []}
    worked: dict[str, list[list[float]]] = {"pruned": [], "full": []}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, selector in (("pruned", pruned), ("full", None)):
            for kind, stages in zip((samples, worked), answer(selector), strict=True):
                kind[name].append(stages)
            # The peak only grows: that of the unpruned answers comes after the pruned ones'.
            peaks.setdefault(name, peak_bytes())
    (medians, first), (working, first_working) = map(_summary, (samples, worked))
    return {
        "model": "LLaVA-NeXT, random weights",
        "precision": manifest.precision,
        "layers": manifest.language_model.layers,
        "width": manifest.vision_encoder.width,
        **facts,
        "keep": pruned.keep if pruned is not None else facts["rows"],
        "text_tokens": TEXT_TOKENS,
        "threads": threads,
        "rounds": rounds,
        "processor": platform.processor() or platform.machine(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "samples_ms": samples,
        "median_ms": medians,
        "ttft_ms": first,
        "ttft_ratio": first["full"] / first["pruned"],
        "prefill_ratio": medians["full"]["prefill"] / medians["pruned"]["prefill"],
        "processor_samples_ms": worked,
        "processor_median_ms": working,
        "processor_ttft_ms": first_working,
        "processor_ttft_ratio": first_working["full"] / first_working["pruned"],
        "peak_bytes": peaks,
        "bundle_bytes": sum(info.size for info in manifest.files.values()),
    }


def _summary(samples: dict[str, list[list[float]]]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return medians by stage, and those of all stages together."""
    stages = {
        name: dict(zip(STAGES, map(median, zip(*found, strict=True)), strict=True))
        for name, found in samples.items()
    }
    return stages, {name: median(sum(one) for one in found) for name, found in samples.items()}


def show(results: dict[str, Any]) -> None:
    """Print the medians as a table."""
    print(
        f"{results['tiles']} tiles, {results['layers']} layers x {results['width']}, {results['precision']}, "
        f"{results['threads']} threads, {results['rounds']} rounds; ms"
    )
    print(f"{'visual tokens':>14}" + "".join(f"{stage:>12}" for stage in (*STAGES, "TTFT", "peak GB")))
    for kind in ("", "processor_"):
        for name, tokens in (("pruned", results["keep"]), ("full", results["rows"])):
            times = [*results[f"{kind}median_ms"][name].values(), results[f"{kind}ttft_ms"][name]]
            peak = results["peak_bytes"][name] / 1e9
            print(f"{tokens:>14}" + "".join(f"{ms:12,.1f}" for ms in times) + f"{peak:12.1f}")
        print(f"{kind.rstrip('_')} TTFT {results[f'{kind}ttft_ratio']:.2f}x faster")


if __name__ == "__main__":
    main()
