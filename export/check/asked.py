"""What TensorRT's own parser and builder say of a bundle: TensorRT-RTX, where it is installed. No GPU is needed.

Its parser is that of TensorRT's newer versions, so what it refuses is a fault whatever the target. What it takes proves
engines for the GPUs that it was asked for, and nothing of another TensorRT's parser or engines (evidence level E2b).
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.targets import Target
from divprune_edge.models.tensorrt import TENSORRT_RTX

EVIDENCE = "E2b"


@dataclass(frozen=True)
class GraphAnswer:
    """What it said of one graph: seconds and bytes of the engine, None where it only parsed; words if it refused."""

    file: str
    seconds: float | None = None
    size: int | None = None
    words: str | None = None


@dataclass(frozen=True)
class RtxAnswers:
    """Who was asked, for which compute capabilities (times ten), and what it said.

    ``unbuilt`` is why graphs were parsed and not built, None where they were built.
    """

    library: str
    sms: tuple[int, ...]
    answers: tuple[GraphAnswer, ...]
    unbuilt: str | None = None


def ask_tensorrt(bundle: Path, target: Target, *, build: bool = True) -> RtxAnswers:
    """Let TensorRT-RTX parse and build the graphs of a bundle, in a process that it may end.

    Args:
        bundle: its folder; its language model is in a dialect for TensorRT.
        target: a device that runs TensorRT of either edition. Where TensorRT-RTX builds nothing for its GPU, the
            nearest older one stands for it.
        build: parse alone if False, and where the machine's memory is too small.

    Raises:
        UserError: no bundle, or a damaged one.
        DivpruneError: TensorRT-RTX ended the process before it was asked about any graph.
    """
    sms, answers = _sms(target), list[GraphAnswer]()
    with tempfile.TemporaryDirectory(prefix="divprune-check-") as folder:
        said = Path(folder) / "events"
        while True:
            said.unlink(missing_ok=True)
            options = (",".join(map(str, sms)), "build" if build else "parse", str(len(answers)), str(said))
            ended = subprocess.run(
                [sys.executable, "-m", f"{__package__}.asking", str(bundle), *options],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            first, *rest = [*map(json.loads, said.read_text("utf-8").splitlines())] if said.exists() else [{}]
            if "refused" in first:
                raise UserError(first["refused"], code=first["code"])
            words = f"TensorRT-RTX ended the process that asked it: {_end(ended)}"
            if "files" not in first:
                raise DivpruneError(f"{words}.", code="tensorrt-ended")
            answers += [GraphAnswer(**event) for event in rest]
            files = first["files"]
            # A fault while the process ends, when all was said, is no graph's.
            if ended.returncode and len(answers) < len(files):
                answers.append(GraphAnswer(files[len(answers)], words=words))
            if len(answers) == len(files):
                return RtxAnswers(first["library"], sms, tuple(answers), first["unbuilt"])


def _end(ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode < 0:
        return signal.strsignal(-ended.returncode) or f"signal {-ended.returncode}"
    return (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1].rstrip(".")


def is_installed() -> bool:
    """Whether TensorRT-RTX is here, and Polygraphy, which drives it."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorrt_rtx", "polygraphy"))


def _sms(target: Target) -> tuple[int, ...]:
    """Return a target's own compute capabilities, or the nearest older one that TensorRT-RTX builds for."""
    if set(target.sms) <= set(TENSORRT_RTX.sms):
        return target.sms
    return (max(sm for sm in TENSORRT_RTX.sms if sm <= target.sms[0]),)
