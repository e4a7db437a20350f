"""How long the command line takes to start: help texts, a question and its kin, and a bare interpreter beside them.

``python -m bench.startup [BUNDLE]``; with a bundle also what needs one, from the start of the process to its end. The
commands take turns, so that a drift of the machine hits all of them. ``--against CLONE BUNDLE`` runs each in another
clone as well, with a bundle of its own, and prints what this one takes in that one's processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from divprune_edge.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
QUESTION = ["--image", str(ROOT / "models/demo/picture.png"), "What does the sign say?"]
Samples = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--against", type=Path, nargs=2, metavar=("CLONE", "BUNDLE"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    places = {"here": (ROOT, arguments.bundle)}
    if arguments.against:
        places["there"] = arguments.against
    found = measure(places, arguments.runs)
    samples, there = found["here"], found.get("there")
    print(f"| | seconds, median [smallest, largest] | of processor time |{' of there |' if there else ''}")
    print(f"|---|---|---|{'---|' if there else ''}")
    for name, runs in samples.items():
        wall, processor = ([run[kind] for run in runs] for kind in ("seconds", "processor_seconds"))
        ratio = f" {ratios(runs, there[name])} |" if there else ""
        print(
            f"| {name} | {median(wall):.2f} [{min(wall):.2f}, {max(wall):.2f}] | {median(processor):.2f} |{ratio}"
        )
    if arguments.json:
        write_whole(
            arguments.json,
            json.dumps({"python": sys.version.split()[0], "samples": found}, indent=2) + "\n",
        )


def commands(bundle: Path | None) -> dict[str, list[str]]:
    """Return what is started; without a bundle, the help texts alone."""
    named = {
        "bare Python": ["-c", "pass"],
        "ask --help": ["-m", "runtime", "ask", "--help"],
        "export llava --help": ["-m", "export", "llava", "--help"],
    }
    if bundle is not None:
        whole = str(bundle.resolve())
        named["info"] = ["-m", "runtime", "info", whole]
        named["check"] = ["-m", "export", "check", whole, "--target", "cpu", "--no-build"]
        named["a question"] = ["-m", "runtime", "ask", whole, *QUESTION]
        named["a question, one thread"] = [*named["a question"], "--threads", "1"]
    return named


def measure(places: dict[str, tuple[Path, Path | None]], runs: int) -> dict[str, Samples]:
    """Return wall and processor seconds of every command's runs in each place, one of each in turn after a first."""
    started = {place: commands(bundle) for place, (_, bundle) in places.items()}
    samples: dict[str, Samples] = {place: {name: [] for name in named} for place, named in started.items()}
    for i in range(runs + 1):
        for name in started["here"]:
            for place in sorted(places, reverse=bool(i % 2)):
                sample = _run(started[place][name], places[place][0])
                if i:
                    samples[place][name].append(sample)
    return samples


def ratios(here: list[dict[str, float]], there: list[dict[str, float]]) -> str:
    """Return the median of the pairs' ratios of processor time, and their quartiles."""
    found = sorted(a["processor_seconds"] / b["processor_seconds"] for a, b in zip(here, there, strict=True))
    return f"{median(found):.2f} [{found[len(found) // 4]:.2f}, {found[-1 - len(found) // 4]:.2f}]"


def _run(command: list[str], clone: Path) -> dict[str, float]:
    started = time.perf_counter()
    # Python's bytecode is kept, whatever the environment says: it is what every start but the first finds.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=clone,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != 0:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return {"seconds": round(seconds, 3), "processor_seconds": round(used.ru_utime + used.ru_stime, 3)}


if __name__ == "__main__":
    main()
