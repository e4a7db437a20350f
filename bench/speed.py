"""Side by side: this project, pruned and not, and what a user would pick instead, in one interleaved run.

Every engine has a process of its own; in each round every engine answers once with every budget, so that a
drift of the machine hits all of them. Weights are random: right for speed, useless for answers. ``--tiny`` only
shows that everything runs. Peers that are not installed are left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.engines import genai_, llamacpp_
from bench.engines.engine import SpeedJob
from bench.prepare import (
    FULL,
    TEXT_TOKENS,
    TINY,
    Sizes,
    Variant,
    bundle_folder,
    once,
    prepare,
    prepare_decoder,
)
from bench.summary import show, summarise
from divprune_edge.files import write_whole

OURS = (
    Variant("fp32", "onnxruntime"),
    Variant("int8", "onnxruntime"),
    Variant("int8", "onnxruntime", cut="12:144"),
    Variant("int8", "portable"),
    Variant("vision=int8,language=int4", "onnxruntime"),
    Variant("vision=int8,language=int4", "portable"),
    Variant("vision=int8,language=int4", "onnxruntime", 128),
)
OPENVINO = (Variant("fp32", "portable"), Variant("int4", "portable"), Variant("int4", "portable", 128))
GENAI_BLOCKS = (32, 128)


def main() -> None:
    """Prepare, measure, print the table and write JSON if asked."""
    arguments = _arguments()
    sizes = TINY if arguments.tiny else FULL
    with tempfile.TemporaryDirectory(prefix="divprune-bench-") as temporary:
        folder = arguments.work or Path(temporary)
        jobs, skipped = plan_jobs(sizes, folder, arguments)
        results = measure(jobs, arguments.rounds, arguments.limit, skipped)
    summary = summarise(results, skipped, arguments.threads, sys.argv, TEXT_TOKENS)
    show(summary)
    if arguments.json:
        write_whole(arguments.json, json.dumps(summary, indent=2) + "\n")
    if arguments.chart:
        write_whole(arguments.chart, chart(summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument(
        "--only", default="", help="engines whose label contains one of these, comma-separated"
    )
    parser.add_argument("--limit", type=float, default=90, help="seconds an engine may take for one answer")
    parser.add_argument("--work", type=Path, help="keep what is prepared in this folder")
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--chart", type=Path, help="write a chart of the times to first token here (SVG)")
    return parser.parse_args()


def plan_jobs(
    sizes: Sizes, folder: Path, arguments: argparse.Namespace
) -> tuple[list[SpeedJob], list[dict[str, str]]]:
    """Return the jobs that can be run, and label and reason of those that cannot."""
    wanted = [part for part in arguments.only.split(",") if part]

    def chosen(label: str) -> bool:
        return not wanted or any(part in label for part in wanted)

    ours = [variant for variant in OURS if sizes.takes(variant) and chosen(_ours(variant))]
    theirs = [variant for variant in OPENVINO if sizes.takes(variant) and chosen(f"OpenVINO {variant.what}")]
    checkpoint = prepare(sizes, folder, dict.fromkeys([*ours, *(theirs if find_spec("openvino") else ())]))
    keep = max(1, round(0.1 * sizes.visual))
    jobs: list[SpeedJob] = []
    skipped: list[dict[str, str]] = []

    def add(engine: str, label: str, target: Path, *, whole: bool = True, **options: Any) -> None:
        jobs.append(
            SpeedJob(
                engine=engine,
                label=label,
                folder=str(target),
                checkpoint=str(checkpoint),
                options=options,
                visual=(keep, sizes.visual) if whole else (keep,),
                all_visual=sizes.visual,
                text=TEXT_TOKENS,
                decode=sizes.decode,
                threads=arguments.threads,
                image=sizes.vision["image_size"],
                rows=sizes.text["vocab_size"],
                layers=sizes.text["num_hidden_layers"],
            )
        )

    def peer(label: str, module: str, make: Callable[[], None]) -> None:
        if not chosen(label):
            return
        if find_spec(module) is None:
            skipped.append({"label": label, "reason": f"{module} is not installed: make bench installs it"})
            return
        try:
            make()
        except Exception as error:  # whatever a peer's converter raises is the reason
            output = getattr(error, "stderr", None) or str(error)
            skipped.append({"label": label, "reason": " ".join(str(output).split())[-300:]})

    for variant in ours:
        # Where patches leave inside the encoder there is no unpruned image.
        add("ours", _ours(variant), bundle_folder(folder, variant), whole=variant.cut is None)
    for dtype, name in (("float32", "fp32"), ("bfloat16", "bf16")):
        label = f"transformers {name} sdpa"
        peer(label, "transformers", lambda a=label, b=dtype: add("transformers", a, checkpoint, dtype=b))
    for variant in theirs:
        target = bundle_folder(folder, variant)
        label = f"OpenVINO {variant.what}"
        peer(label, "openvino", lambda a=label, b=target: add("openvino", a, b))

    def genai(label: str, block: int) -> None:
        decoder = prepare_decoder(checkpoint, folder)
        target = once(folder / f"genai-int4-{block}", lambda partial: genai_.prepare(decoder, partial, block))
        add("genai", label, target)

    def llama_cpp(kind: str) -> None:
        decoder = prepare_decoder(checkpoint, folder)
        file = once(folder / f"{kind}.gguf", lambda partial: llamacpp_.prepare(decoder, partial, kind))
        add("llamacpp", f"llama.cpp {kind} (LM only)", file)

    for block in GENAI_BLOCKS:
        variant = Variant("int4", "", None if block == GENAI_BLOCKS[0] else block)
        label = f"onnxruntime-genai {variant.what} (LM only)"
        if sizes.takes(variant, language_alone=True):
            peer(label, "onnxruntime_genai", lambda a=label, b=block: genai(a, b))
    for kind in ("Q4_0", "Q8_0"):
        peer(f"llama.cpp {kind} (LM only)", "llama_cpp", lambda k=kind: llama_cpp(k))
    return jobs, skipped


def _ours(variant: Variant) -> str:
    return f"ours {variant.what} {variant.dialect}"


def measure(
    jobs: list[SpeedJob], rounds: int, limit: float, skipped: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Run the rounds; the first one warms up. An engine that fails or is too slow is moved to ``skipped``."""
    workers = [_Worker(job) for job in jobs]
    for turn in range(rounds + 1):
        for worker in list(workers):
            try:
                worker.answer(limit, keep_times=turn > 0)
            except (RuntimeError, TimeoutError) as error:
                skipped.append({"label": worker.job.label, "reason": str(error)})
                workers.remove(worker)
                worker.close()
        print(f"round {turn} of {rounds}", flush=True)
    for worker in workers:
        worker.close()
    return [worker.result() for worker in workers]


class _Worker:
    """A process with one engine."""

    def __init__(self, job: SpeedJob) -> None:
        self.job = job
        self._times: dict[int, list[dict[str, float]]] = {visual: [] for visual in job.visual}
        self._versions: dict[str, str] = {}
        self._peak = 0.0
        environment = os.environ | {
            "OMP_NUM_THREADS": str(job.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def answer(self, limit: float, *, keep_times: bool) -> None:
        """Measure every budget once.

        Raises:
            RuntimeError: the process ended.
            TimeoutError: it takes longer than ``limit`` seconds.
        """
        if not self._versions:
            self._versions = self._read(5 * limit)["versions"]
        for visual in self.job.visual:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(f"{visual}\n")
                self._process.stdin.flush()
            except OSError:
                raise RuntimeError(self._last_words()) from None
            message = self._read(limit)
            self._peak = message["peak_rss_mb"]
            if keep_times:
                self._times[visual].append(message["times"])

    def _read(self, limit: float) -> dict[str, Any]:
        import select

        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit)
        if not ready:
            raise TimeoutError(f"took more than {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._last_words())
        message: dict[str, Any] = json.loads(line)
        return message

    def _last_words(self) -> str:
        self._process.wait(timeout=30)
        self._errors.seek(0)
        return " ".join(self._errors.read().split())[-300:] or f"ended with {self._process.returncode}"

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def result(self) -> dict[str, Any]:
        """Return everything measured."""
        return {
            "label": self.job.label,
            "engine": self.job.engine,
            "versions": self._versions,
            "peak_rss_mb": self._peak,
            "size_mb": _size(Path(self.job.folder)) / 1e6,
            "samples_ms": {str(visual): times for visual, times in self._times.items()},
        }


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
