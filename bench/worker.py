"""One engine in a process of its own: a job as JSON in, one line of JSON per question out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from bench.engines import open_engine
from bench.engines.engine import SpeedJob


def main() -> None:
    """Load, say so, then measure one budget per line of standard input."""
    # Only answers go to standard output; whatever a library prints goes elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    data = json.loads(sys.argv[1])
    job = SpeedJob(**{**data, "visual": tuple(data["visual"])})
    engine = open_engine(job)
    say({"versions": engine.versions()})
    for line in sys.stdin:
        say({"times": engine.measure(int(line)), "peak_rss_mb": peak_rss_mb()})


def peak_rss_mb() -> float:
    """Return the most physical memory that this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1e3


if __name__ == "__main__":
    main()
