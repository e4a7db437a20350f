"""Run classes of inputs in processes of their own, and count what is no sentence.

    python tests/fuzz/run.py --cases 2000 --json bench/results/fuzz.json
    python tests/fuzz/run.py --class template --case 1234         one case, with its traceback

A fault is an exception that is none of ours, more than 5 s of processor time, 1 GB of memory, or the end of the
process. Every case follows from its class, the seed and its number alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SECONDS, BYTES, SILENCE = 5.0, 1 << 30, 60.0
"""Limits of one case: processor time, growth of memory, and wall time after which its process is ended."""


def main() -> None:
    """Run what the command line asks for; exit code 1 where there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="of each class")
    parser.add_argument("--class", dest="names", action="append", help="only this class; may be repeated")
    parser.add_argument("--case", type=int, help="only this number of the class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so long")
    parser.add_argument("--json", type=Path, help="write the summary here; with --class that of these alone")
    parser.add_argument("--limit", type=float, default=SECONDS, help="processor seconds that a case may take")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    from fuzz.classes import CLASSES

    if unknown := sorted({*(asked.names or ())} - {*CLASSES}):
        parser.error(f"no class '{unknown[0]}': {', '.join(CLASSES)}")
    if asked.worker:
        name, folder, first, last = asked.worker
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        work(name, Path(folder), range(int(first), int(last)), asked.seed, asked.limit)
    elif asked.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            make_demo(Path(folder))
            os.environ["XDG_CACHE_HOME"] = folder
            case = start(asked.names[0], Path(folder))
            case(Random(f"{asked.names[0]}:{asked.seed}:{asked.case}"))
    else:
        summary = fuzz(asked.names, asked.cases, asked.seed, asked.jobs, asked.seconds, asked.limit)
        show(summary)
        if asked.json and asked.names and asked.json.exists():  # the other classes stand as they were
            before = json.loads(asked.json.read_text(encoding="utf-8"))["classes"]
            summary["classes"] = before | summary["classes"]
        if asked.json:
            asked.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        sys.exit(any(entry["faults"] for entry in summary["classes"].values()))


def fuzz(
    names: list[str] | None,
    cases: int,
    seed: int = 0,
    jobs: int = 2,
    seconds: float = float("inf"),
    limit: float = SECONDS,
) -> dict[str, Any]:
    """Run ``cases`` of each class and return the summary; none may take more processor time than ``limit``."""
    from fuzz.classes import CLASSES

    chosen = names or list(CLASSES)
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, ThreadPoolExecutor(jobs) as pool:
        make_demo(Path(folder))
        runs = {name: pool.submit(run_class, name, Path(folder), cases, seed, ends, limit) for name in chosen}
        classes = {name: run.result() for name, run in runs.items()}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seed": seed,
        "classes": classes,
    }


def run_class(name: str, folder: Path, cases: int, seed: int, ends: float, limit: float) -> dict[str, Any]:
    """Run a class, beginning a new process where one ends before its time."""
    began, first, faults, refused = time.monotonic(), 0, [], 0
    place = folder / name
    place.mkdir()
    while first < cases and time.monotonic() < ends:
        asked = [name, str(place), str(first), str(min(cases, first + 5000))]
        options = ["--seed", str(seed), "--limit", str(limit)]
        ended = _process(place, first, [*options, "--worker", *asked], ends)
        reached, told = map(int, (place / "counter").read_text().split())
        refused += told
        faults += [json.loads(line) for line in _lines(place / "faults")]
        (place / "faults").unlink(missing_ok=True)
        if ended:
            faults.append({"case": reached, "fault": ended})
            if sum("where" not in fault for fault in faults) > 50:
                break
        first = reached + 1
    done = min(first, cases)
    return {
        "cases": done,
        "refused": refused,
        "faults": len(faults),
        "seconds": round(time.monotonic() - began, 1),
        "examples": faults[:20],
    }


def _process(place: Path, first: int, asked: list[str], ends: float) -> str:
    """Return why the process ended, where it was not done or out of time; ``counter`` says how far it came."""
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    with (place / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, __file__, *asked],
            env=environment,
            stdout=log,
            stderr=log,
        )
        counter, moved, seen = place / "counter", time.monotonic(), ""
        counter.write_text(f"{first:<12}{0:<12}")
        while (code := _wait(worker)) is None:
            now = counter.read_text()
            if now != seen:
                seen, moved = now, time.monotonic()
            if time.monotonic() > ends:
                worker.terminate()
                worker.wait()
                return ""
            if time.monotonic() - moved > SILENCE:
                worker.kill()
                worker.wait()
                return f"no end after {SILENCE:g} s"
    last_words = " ".join(_lines(place / "log")[-1:])[:300]
    return "" if code == 0 else f"the process ended with {code}: {last_words}"


def _wait(worker: subprocess.Popen[bytes]) -> int | None:
    try:
        return worker.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []


def work(name: str, place: Path, numbers: range, seed: int, limit: float) -> None:
    """Run cases in this process, noting each before it begins and every fault."""
    from divprune_edge.errors import DivpruneError

    case = start(name, place)
    with (place / "counter").open("r+b", buffering=0) as counter, (place / "faults").open("a") as faults:

        def fault(number: int, what: str, where: str = "") -> None:
            faults.write(json.dumps({"case": number, "fault": what[:300], "where": where}) + "\n")
            faults.flush()

        refused = 0
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            os.pwrite(counter.fileno(), f"{number:<12}{refused:<12}".encode(), 0)
            began = time.process_time()
            try:
                case(Random(f"{name}:{seed}:{number}"))
            except DivpruneError:
                refused += 1
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                fault(number, f"{type(error).__name__}: {error}", f"{Path(last.filename).name}:{last.lineno}")
            if (took := time.process_time() - began) > limit:
                fault(number, f"{took:.1f} s of processor time")
            if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) - memory > BYTES >> 10:
                fault(number, f"{(grown - memory) >> 10} MiB of memory")
            memory = max(memory, grown)
            os.pwrite(counter.fileno(), f"{number:<12}{refused:<12}".encode(), 0)


def start(name: str, place: Path) -> Any:
    """Return the cases of a class, made in a folder of their own."""
    import logging

    from fuzz.classes import CLASSES

    logging.disable(logging.CRITICAL)
    demo = next(folder / "demo" for folder in (place, *place.parents) if (folder / "demo").is_dir())
    return CLASSES[name](Path(tempfile.mkdtemp(dir=place)), demo)


def make_demo(folder: Path) -> None:
    """Export the demo checkpoint, which needs neither torch nor a network."""
    command = [
        sys.executable,
        "-m",
        "export",
        "llava",
        "--prune",
        "0.9",
        "--no-verify",
        "--output",
        str(folder / "demo"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def show(summary: dict[str, Any]) -> None:
    """Print a line per class and the faults."""
    for name, entry in summary["classes"].items():
        counts = f"{entry['cases']:>8} cases {entry['refused']:>8} refused {entry['faults']:>5} faults"
        print(f"{name:<14} {counts} {entry['seconds']:>8} s")
        for example in entry["examples"][:8]:
            print(f"    {example}")


if __name__ == "__main__":
    main()
