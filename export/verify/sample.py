"""A short greedy answer of a bundle with ONNX Runtime, for a device to compare its own with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from divprune_edge.errors import DivpruneError

LONGEST = 16
REQUIRED = 4
"""Ids that must agree: fp16 sums in another order part ways at some near-tie later, seldom at once."""


@dataclass(frozen=True)
class Sample:
    """A question, and what ONNX Runtime answers on the CPU, or why it was not asked.

    ``required`` is the number of leading ids that another backend must agree with; ``token_ids`` holds the stop
    id too, if one ended the answer.
    """

    question: str
    max_tokens: int = LONGEST
    required: int = REQUIRED
    answer: str | None = None
    token_ids: tuple[int, ...] = ()
    source: str = ""

    def to_json(self) -> str:
        """Return the sample as indented JSON with a final newline."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def sample_answer(bundle: Path, image: Path, question: str) -> Sample:
    """Ask ``bundle`` on the CPU; where that cannot be done, ``source`` says why."""
    if find_spec("onnxruntime") is None:
        return Sample(
            question, source="not recorded: ONNX Runtime is not installed where the package was made"
        )
    reason = _no_room(bundle)
    if reason is not None:
        return Sample(question, source=f"not recorded: {reason}")
    import onnxruntime

    from divprune_edge.runtime.pipeline import Pipeline

    try:
        answer = Pipeline(bundle).ask(image, question, max_tokens=LONGEST)
    except DivpruneError as error:
        return Sample(question, source=f"not recorded: {error}")
    return Sample(
        question,
        answer=answer.answer,
        token_ids=answer.token_ids,
        source=f"ONNX Runtime {onnxruntime.__version__} on the CPU of the machine that made the package",
    )


def _no_room(bundle: Path) -> str | None:
    """Say why the bundle cannot be run here, if its graphs in float32 would not fit into the free memory."""
    from divprune_edge.export.verify.bundle import available_memory

    # ONNX Runtime's CPU kernels compute in float32: fp16 weights take twice their size when they are widened.
    needed = 3 * sum(path.stat().st_size for path in bundle.iterdir() if path.is_file())
    free = available_memory()
    if free is None or needed <= free:
        return None
    return f"it would take some {needed / 2**30:.0f} GiB of memory, {free / 2**30:.0f} GiB were free"
