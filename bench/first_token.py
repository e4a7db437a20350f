"""The stages up to the first token: how long each takes, for several variants of one prompt in turn."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.export import check_disk
from divprune_edge.files import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from divprune_edge.export.plan import ExportPlan
    from divprune_edge.manifest import SelectorInfo, Verification
    from divprune_edge.runtime.vision import Candidates

STAGES = ("preprocess", "vision", "assemble", "select", "prefill")
SEEN = STAGES[:3]
"""Stages that have nothing to do with the selector or the text."""
_BEFORE = 4
"""Text tokens in front of the image."""
_PLACEHOLDER = -1


@dataclass(frozen=True)
class Variant:
    """A prompt of one image and so many text tokens; None prunes nothing."""

    selector: SelectorInfo | None
    text_tokens: int


class _Clock:
    """Milliseconds that passed, and that the processor worked, since the last look."""

    def __init__(self) -> None:
        self._last = self._now()

    def __call__(self) -> tuple[float, float]:
        before, self._last = self._last, self._now()
        return 1000 * (self._last[0] - before[0]), 1000 * (self._last[1] - before[1])

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def measure(
    folder: Path,
    variants: Mapping[str, Variant],
    picture: Image.Image,
    *,
    warm: Image.Image,
    threads: int,
    rounds: int,
    repeats: int = 1,
) -> dict[str, Any]:
    """Return times of every stage, medians, TTFT and peak memory by variant, and what was measured.

    In each round the image is encoded once, and the variants follow in turn, ``repeats`` times. Before the first one, a
    prompt with ``warm`` as its image is answered, which is not counted.
    """
    from divprune_edge.processing.layout import lay_out
    from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.profiling.peak_memory import peak_bytes
    from divprune_edge.runtime.vision import Vision

    bundle = Bundle.open(folder)
    manifest, backend = bundle.manifest, OnnxRuntimeBackend(bundle, "cpu", threads)
    vision, language, prompts = Vision(bundle, backend), manifest.language_model, bundle.prompt_encoder()
    for variant in variants.values():
        backend.load(variant.selector)
    text = np.random.default_rng(1).integers(6, 30, max(v.text_tokens for v in variants.values())).tolist()

    def encode(shown: Image.Image) -> tuple[Candidates, list[tuple[float, float]]]:
        lap = _Clock()
        (image,) = vision.read([shown])
        times = [lap()]
        tiles = vision.tiles(image)
        times.append(lap())
        candidates = vision.assemble(image, tiles)
        times.append(lap())
        return candidates, times

    def answer(seen: Candidates, variant: Variant) -> list[tuple[float, float]]:
        lap = _Clock()
        kept = vision.select(seen, variant.selector)
        times = [lap()]
        words = [*text[:_BEFORE], _PLACEHOLDER, *text[_BEFORE : variant.text_tokens]]
        prompt = lay_out(words, {_PLACEHOLDER}, [len(kept.rows)], language.embedding_rows)
        prompt = prompts.place(prompt, kept.images)
        session = backend.session()
        session.extend(session.add(kept.tokens), prompt.ids, prompt.positions)
        times.append(lap())
        return times

    answer(encode(warm)[0], next(iter(variants.values())))
    samples: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in variants}
    peaks: dict[str, int] = {}
    rows = tiles = 0
    for _ in range(rounds):
        seen, before = encode(picture)
        rows, tiles = int(seen.valid.sum()), len(seen.images[0].pixels)
        for name, variant in [*variants.items()] * repeats:
            samples[name].append([*before, *answer(seen, variant)])
            # The peak only grows: that of a variant includes those before it.
            peaks.setdefault(name, peak_bytes())
    return {
        "precision": manifest.precision,
        "layers": language.layers,
        "width": manifest.vision_encoder.looked_at,
        "tiles": tiles,
        "rows": rows,
        "keep": {name: rows if v.selector is None else v.selector.keep for name, v in variants.items()},
        "text_tokens": {name: v.text_tokens for name, v in variants.items()},
        "threads": threads,
        "rounds": rounds,
        "repeats": repeats,
        "processor": platform.processor() or platform.machine(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        **_summary(samples, 0),
        **{f"processor_{key}": value for key, value in _summary(samples, 1).items()},
        "peak_bytes": peaks,
        "bundle_bytes": sum(info.size for info in manifest.files.values()),
    }


def _summary(samples: Mapping[str, list[list[tuple[float, float]]]], clock: int) -> dict[str, Any]:
    """Return what one of the clocks said: all, medians by stage, and those of all stages together."""
    said = {name: [[stage[clock] for stage in one] for one in found] for name, found in samples.items()}
    return {
        "samples_ms": said,
        "median_ms": {
            name: dict(zip(STAGES, map(median, zip(*found, strict=True)), strict=True))
            for name, found in said.items()
        },
        "ttft_ms": {name: median(sum(one) for one in found) for name, found in said.items()},
    }


def show(results: Mapping[str, Any]) -> None:
    """Print the medians as a table, by both clocks."""
    print(
        f"{results['tiles']} tiles, {results['layers']} layers x {results['width']}, {results['precision']}, "
        f"{results['threads']} threads, {results['rounds']} rounds of "
        f"{results['repeats']}; ms"
    )
    print(f"{'visual':>10}{'text':>8}" + "".join(f"{stage:>12}" for stage in (*STAGES, "TTFT", "peak GB")))
    for kind in ("", "processor_"):
        print(kind.rstrip("_") or "passed")
        for name, stages in results[f"{kind}median_ms"].items():
            times = [*stages.values(), results[f"{kind}ttft_ms"][name]]
            peak = results["peak_bytes"][name] / 1e9
            counts = f"{results['keep'][name]:>10}{results['text_tokens'][name]:>8}"
            print(counts + "".join(f"{ms:12,.1f}" for ms in times) + f"{peak:12.1f}")


def run(
    module: str,
    description: str | None,
    export: Callable[[Path, bool], Path],
    measure: Callable[[Path, int, int], dict[str, Any]],
    *,
    rounds: int,
    disk: int,
) -> None:
    """Read the command line, measure, print one table, and write JSON if asked.

    ``export(folder, tiny)`` makes a checkpoint of ``disk`` bytes and returns its bundle; ``measure(bundle, threads,
    rounds)`` runs in ``python -m module``, whose peak memory is not that of the export before it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to use")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.threads, options.rounds)))
        return
    check_disk(options.folder, 2**25 if options.tiny else disk)
    with tempfile.TemporaryDirectory(prefix=f"{module}-", dir=options.folder) as name:
        command = (sys.executable, "-m", module, "--measure", str(export(Path(name), options.tiny)))
        asked = ("--threads", str(options.threads), "--rounds", str(options.rounds))
        done = subprocess.run((*command, *asked), stdout=subprocess.PIPE, text=True, check=True)
    results = json.loads(done.stdout.splitlines()[-1])
    show(results)
    if options.json:
        write_whole(options.json, json.dumps(results, indent=2) + "\n")


def unverified(plan: ExportPlan, folder: Path) -> Verification:
    """Random weights have nothing to prove."""
    from divprune_edge.manifest import Verification

    return Verification(status="not verified", reason="benchmark")
