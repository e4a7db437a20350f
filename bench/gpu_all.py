"""Everything that a GPU must prove, in one go: smoke, selector, a model of LLaVA-1.5-7B's size, eager PyTorch, tests.

Each part is a process of its own with a limit and a log; one that fails is noted, and the others go on. All of it goes
into one JSON, targets compared, which is written anew after each part. ``--tiny`` runs the same on a CPU with small
sizes: does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_parts import FLASH
from bench.gpu_targets import TARGETS, UNCAPTURED, WARPGROUPS, line
from bench.random_checkpoint import LM_7B
from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.plugins.loader import find_library, find_operators
from divprune_edge.runtime.backends.captured import GRAPHS_VARIABLE

PRECISIONS = {"fp16": "fp16", "int4": "vision=fp16,language=int4"}
HOPPER = "9.0"
"""The compute capability whose warpgroups multiply."""
LEAST = 5.0
"""Seconds for which no part is begun."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="default: in the folder $OUT, else bench/results/gpu.json")
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoint and bundles (default: the temporary one)"
    )
    parser.add_argument("--layers", type=int, default=LM_7B["num_hidden_layers"], help="of the decoder")
    parser.add_argument("--seconds", type=float, default=450, help="for all parts together")
    parser.add_argument("--limit", type=float, default=150, help="seconds for each part, of those")
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes on a CPU, of which nothing is judged"
    )
    options = parser.parse_args(arguments)
    out = os.environ.get("OUT")
    found = options.json or (Path(out) / "gpu.json" if out else Path("bench/results/gpu.json"))
    found.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result: dict[str, Any] = {"machine": _machine(), "failed": {}, "selector": {}, "models": {}}

    def save() -> None:
        result["targets"] = [target.judged(result, verdict=not options.tiny) for target in TARGETS]
        result["seconds"] = round(time.monotonic() - started)
        write_whole(found, json.dumps(result, indent=1) + "\n")

    logs = found.parent / f"{found.stem}-logs"
    run = Runner(started + options.seconds, options.limit, logs, result["failed"], save)
    with tempfile.TemporaryDirectory(prefix="divprune-gpu-", dir=options.work) as folder:
        measure(run, result, Path(folder), options)
    save()
    print(
        *(line(one) for one in result["targets"]), f"{result['seconds']} s, {found}, logs in {logs}", sep="\n"
    )
    for name, reason in result["failed"].items():
        print(f"failed: {name}: {reason.splitlines()[-1]}")
    return int(bool(result["failed"]))


def measure(run: Runner, result: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """Measure part by part into ``result``, what tells most of a failure first."""
    tiny = ["--tiny"] if options.tiny else []
    has_wgmma = options.tiny or result["machine"]["gpu"].endswith(HOPPER)

    def part(name: str, *more: str) -> Any:
        found = folder / f"{name}.json"
        run(
            name,
            ["bench.gpu_parts", name, "--layers", str(options.layers), *more, *tiny, "--json", str(found)],
        )
        return _read(found)

    def select(name: str, *more: str) -> None:
        found = folder / f"{name}.json"
        run(f"selector, {name}", ["bench.selector", *more, *tiny, "--json", str(found)])
        result["selector"][name] = _read(found)

    if not options.tiny:
        build(run)
    result["smoke"] = part("smoke")
    for dtype in ("float16", "float32"):
        select(dtype, "--dtype", dtype)
    checkpoint = folder / "checkpoint"
    part("checkpoint", "--folder", str(checkpoint))
    for name, precision in PRECISIONS.items():
        bundle = folder / name
        export = ["--model", str(checkpoint), "--target", "cuda", "--precision", precision]
        export += ["--greedy", "--no-verify", "--output", str(bundle)]
        run(f"export, {name}", ["divprune_edge.export", "llava", *export])
        backend = ["--backend", "cpu" if options.tiny else "cuda"]
        for title, environment in ((name, {}), (UNCAPTURED, {GRAPHS_VARIABLE: "off"}))[
            : 1 + (name == "fp16")
        ]:
            found = folder / f"{title}.json"
            profile = ["profile", str(bundle), *backend, "--answer-tokens", "64", "--json", str(found)]
            run(f"profile, {title}", ["divprune_edge.runtime", *profile], **environment)
            result["models"][title] = _read(found)
        if name == "fp16":
            result["probe"] = part("probe", "--folder", str(bundle))
    result["eager"] = part("eager")
    if has_wgmma:
        select(WARPGROUPS, "--product", "wgmma")
    if not options.tiny:
        result["tests"] = run.tests("tests", "tests/gpu", "--ignore=tests/gpu/test_wgmma.py")
        if has_wgmma:
            result["tests, wgmma"] = run.tests("tests, wgmma", "tests/gpu/test_wgmma.py")


def build(run: Runner) -> None:
    """Build the libraries where they are not there; without one of them there is nothing to prove."""
    if missing_library():
        run("build", ["plugins", "build"])
    if reason := missing_library():
        run.failed["libraries"] = reason


def missing_library() -> str | None:
    """Return what is wrong with the kernels' libraries, if anything is."""
    try:
        find_library()
        operators = find_operators()
    except UserError as error:
        return str(error)
    if operators is None or operators.record.cuda is None:
        return "ONNX Runtime's operators are not built for CUDA: 'python -m plugins build --onnxruntime-include DIR'."
    return None


class Runner:
    """Starts Python modules, writes what they say into logs, and notes which failed, and why.

    Args:
        ends: when all parts must have ended, by ``time.monotonic``.
        limit: seconds for one of them.
        logs: folder of the logs.
        failed: what failed, by part.
        save: called after each part.
    """

    def __init__(
        self, ends: float, limit: float, logs: Path, failed: dict[str, str], save: Callable[[], None]
    ) -> None:
        self._ends, self._limit, self._logs, self._save = ends, limit, logs, save
        self.failed = failed
        logs.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, module: Sequence[str], **environment: str) -> str:
        """Run a module; return what it said, as much as it said before it failed."""
        seconds = min(self._limit, self._ends - time.monotonic())
        if seconds < LEAST:
            self.failed[name] = "there was no time left for it"
            return ""
        print(f"{name} …", flush=True)
        log = self._logs / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"
        more = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **environment}
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *module], stdout=stream, stderr=stream, env=os.environ | more
            )
            code = _wait(process, seconds)
        said = log.read_text(encoding="utf-8", errors="replace")
        if code is None:
            self.failed[name] = f"took more than {seconds:.0f} s; its log has where it was"
        elif code != 0:
            self.failed[name] = said.strip()[-2000:] or f"exit code {code}"
        if name in self.failed:
            print(f"  failed: {self.failed[name].splitlines()[-1]}", flush=True)
        self._save()
        return said

    def tests(self, name: str, *files: str) -> str:
        """Run tests, of which none may be skipped; return the line that counts them."""
        said = self(name, ["pytest", "-q", "-o", "faulthandler_timeout=60", *files])
        counted = said.strip().splitlines()[-1] if said.strip() else ""
        if re.search(r"\d+ skipped", counted) and name not in self.failed:
            self.failed[name] = f"what is skipped proves nothing: {counted}"
            self._save()
        return counted


def _wait(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """Return the exit code; None of one that is ended because it takes longer, and first says where it is."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def _machine() -> dict[str, str]:
    fields = "--query-gpu=name,driver_version,memory.total,compute_cap"
    try:
        query = ["nvidia-smi", fields, "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = ""
    facts = {"gpu": gpu, "python": platform.python_version(), "processor": platform.machine()}
    return facts | {FLASH: os.environ.get(FLASH, "not set")}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
