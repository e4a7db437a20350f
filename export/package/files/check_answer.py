"""Compare an answer of this board with the one that was recorded when the package was made, and say what it took.

    python3 check_answer.py EXPECTED.json ANSWER.json

ANSWER.json is what ``python -m runtime ask … --json`` printed. The first ``required`` ids must agree; later ones may
part ways, because sums in float16 depend on the order in which a GPU adds. Exit code 0 says that they agree, or that
nothing was recorded to compare with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(expected_file: str, answer_file: str) -> int:
    """Print what was answered, and below it what that took; return the exit code."""
    expected, answer = read(expected_file), read(answer_file)
    if expected is None or answer is None or not isinstance(answer.get("token_ids"), list):
        broken = expected_file if expected is None else answer_file
        print(f"error: '{broken}' does not hold an answer: run install.sh again.", file=sys.stderr)
        return 1
    text, ids = answer.get("answer"), answer["token_ids"]
    if not ids:
        print("error: the board answered with nothing.", file=sys.stderr)
        return 1
    if expected["answer"] is None:
        print(f"The board answers '{text}'; nothing to compare with ({expected['source']}).")
        print_timings(answer)
        return 0
    wanted = expected["token_ids"]
    needed = min(expected["required"], len(wanted))
    same = next(
        (i for i, (a, b) in enumerate(zip(wanted, ids, strict=False)) if a != b), min(len(wanted), len(ids))
    )
    if same < needed:
        print(
            f"error: the board answers '{text}', but '{expected['answer']}' was recorded ({expected['source']}): "
            f"{same} leading ids agree, expected {needed} or more.",
            file=sys.stderr,
        )
        return 1
    whole = same == len(wanted) == len(ids)
    print(f"The board answers '{text}', " + ("as recorded." if whole else f"{same} leading ids as recorded."))
    print_timings(answer)
    return 0


def print_timings(answer: dict[str, Any]) -> None:
    """Print the stages' times, if the answer has them."""
    timings = answer.get("timings_ms")
    if isinstance(timings, dict):
        stages = ", ".join(f"{stage} {value:.0f}" for stage, value in timings.items())
        print(f"It took, in ms: {stages} (a first question; later ones take less).")


def read(file: str) -> dict[str, Any] | None:
    """Return the last line, or the whole, of a JSON file; None if it holds no object."""
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
        data = json.loads(text if text.startswith("{\n") else text.splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return data if isinstance(data, dict) else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
