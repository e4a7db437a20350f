"""How long the command line takes to start: the help text, a question, and a bare interpreter beside them.

``python -m bench.startup [BUNDLE]``; with a bundle also a question, from the start of the process to its end. The
commands take turns, so that a drift of the machine hits all of them.
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


def main() -> None:
    """Measure, print one table, and write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    commands = {
        "bare Python": ["-c", "pass"],
        "ask --help": ["-m", "runtime", "ask", "--help"],
        "export llava --help": ["-m", "export", "llava", "--help"],
    }
    if arguments.bundle:
        commands["a question"] = ["-m", "runtime", "ask", str(arguments.bundle.resolve()), *QUESTION]
    samples = measure(commands, arguments.runs)
    print("| | seconds, median [smallest, largest] | of processor time |\n|---|---|---|")
    for name, runs in samples.items():
        wall, processor = ([run[kind] for run in runs] for kind in ("seconds", "processor_seconds"))
        print(f"| {name} | {median(wall):.2f} [{min(wall):.2f}, {max(wall):.2f}] | {median(processor):.2f} |")
    if arguments.json:
        write_whole(
            arguments.json,
            json.dumps({"python": sys.version.split()[0], "samples": samples}, indent=2) + "\n",
        )


def measure(commands: dict[str, list[str]], runs: int) -> dict[str, list[dict[str, float]]]:
    """Return wall and processor seconds of every command's runs, one run of each in turn after one that warms up."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for i in range(runs + 1):
        for name, command in commands.items():
            sample = _run(command)
            if i:
                samples[name].append(sample)
    return samples


def _run(command: list[str]) -> dict[str, float]:
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    seconds, after = time.perf_counter() - started, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(seconds, 3), "processor_seconds": round(processor, 3)}


if __name__ == "__main__":
    main()
