"""What the trainers' command lines have in common: options, pictures, and several processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..render import IMAGE_SIZE
from ..scenes import Split
from . import workers
from .data import Pictures, draw_pictures

PHASES = ("pictures", "vision", "language")


def begin(
    package: str | None,
    doc: str | None,
    arguments: Sequence[str] | None,
    *,
    count: int,
    size: int = IMAGE_SIZE,
) -> tuple[argparse.Namespace, Pictures] | None:
    """Read the options of `package`.train, draw `count` pictures and meet the other processes.

    None: the pictures were all that was asked for. The process that was called starts the others and ends with them.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("demo-training"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", choices=PHASES, default=PHASES[-1], help="stop after this phase")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pictures = draw_pictures(options.work / "pictures", Split.TRAIN, options.seed, count, size=size)
    if options.phase == PHASES[0]:
        return None
    if options.processes > 1 and "RANK" not in os.environ:
        given = sys.argv[1:] if arguments is None else [*arguments]
        raise SystemExit(workers.start(given, options.processes, f"{package}.train"))
    workers.join()
    torch.manual_seed(options.seed)
    return options, pictures
