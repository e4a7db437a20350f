"""A few prompts through the language model in float32: what its layers read decides how their weights are rounded.

The only part of the export, beside verification, that runs a model.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.export.dialects import Portable
from divprune_edge.export.examples import QUESTIONS, images_in, open_examples, open_graph
from divprune_edge.export.formats.recording import OUTPUT, Recording
from divprune_edge.export.language import build_language_model
from divprune_edge.export.plan import ExportPlan
from divprune_edge.models.precisions import PRECISIONS
from divprune_edge.processing.layout import PromptIds
from divprune_edge.scratch import scratch


def calibrated(plan: ExportPlan, folder: Path) -> ExportPlan:
    """Return the plan with what the layers read when questions are asked about images in ``folder``.

    Every other prompt has the pruned budget, the rest all visual tokens.

    Raises:
        UserError: nothing to calibrate, no images there, no ONNX Runtime, or no room for the graphs in float32.
    """
    if not PRECISIONS[plan.precisions.language].in_blocks:
        raise UserError(
            f"--calibrate is for a language model in int4, not {plan.precisions.language}: leave it out, or add "
            "--precision vision=fp32,language=int4.",
            code="calibration-needs-int4",
        )
    files = images_in(folder, "calibration-images-missing")
    moments: dict[str, npt.NDArray[np.float64]] = {}
    temporary, name = Path(tempfile.gettempdir()), f"calibrate-{secrets.token_hex(4)}"
    with scratch(temporary, name, busy=f"'{temporary}' is in use by another calibration: repeat it.") as work:
        _check_room(plan, temporary)
        examples, recording = open_examples(plan, work, "--calibrate"), Recording()
        model = build_language_model(
            plan.spec, plan.names, plan.checkpoint, Portable(), recording, token_dtype="float32"
        )
        _, language = open_graph(model, work, "language.onnx", "--calibrate")
        for i, file in enumerate(files):
            prompt, tokens = examples.prompt(file, QUESTIONS[i % len(QUESTIONS)], pruned=i % 2 == 0)
            for output, rows in _inputs(plan, language, recording, prompt, tokens[None]):
                x = rows.astype(np.float64)
                first, *others = recording.readers[output]
                moments[first] = moments.get(first, 0) + x.T @ x
                moments.update(dict.fromkeys(others, moments[first]))
    return replace(plan, moments=moments)


def _check_room(plan: ExportPlan, folder: Path) -> None:
    shapes = plan.names.parameters(plan.spec, plan.embedding_rows, plan.vocabulary)
    needed = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--calibrate writes both graphs in float32, {needed >> 20} MiB, but '{folder}' has only "
            f"{free >> 20} MiB free: make room there, or name another folder in TMPDIR.",
            code="disk-too-full",
        )


def _inputs(
    plan: ExportPlan, session: Any, recording: Recording, prompt: PromptIds, tokens: npt.NDArray[Any]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield (output, rows [positions, in]) of every recorded input of one prefill."""
    decoder = plan.spec.decoder
    empty = np.zeros((1, decoder.kv_heads, 0, decoder.head_dim), np.float32)
    feed = {
        "input_ids": np.asarray(prompt.ids, np.int64)[None],
        "visual_tokens": tokens,
        "logits_index": np.array([len(prompt) - 1]),
        "attention_mask": np.ones((1, len(prompt)), bool),
        "position_ids": prompt.positions[..., None, :],
        **{f"past_key_values.{i}.{part}": empty for i in range(decoder.layers) for part in ("key", "value")},
    }
    names = [output.name for output in session.get_outputs() if output.name.startswith(OUTPUT)]
    for name, value in zip(names, session.run(names, feed), strict=True):
        yield name, value.reshape(-1, value.shape[-1])
