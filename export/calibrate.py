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
import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.assemble import build_assemble
from divprune_edge.export.dialects import Portable
from divprune_edge.export.formats.plain import Plain
from divprune_edge.export.formats.recording import OUTPUT, Recording
from divprune_edge.export.language import build_language_model
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.prompts import prompt_encoder
from divprune_edge.export.seen import Seen, see
from divprune_edge.export.vision import build_vision_encoder
from divprune_edge.export.writer import write_graph
from divprune_edge.hints import install
from divprune_edge.manifest import GraphInfo
from divprune_edge.processing.image_input import kept_places, reading_order
from divprune_edge.processing.images import load_image
from divprune_edge.processing.layout import PlacedImage, PromptIds
from divprune_edge.processing.prompt import Turn
from divprune_edge.scratch import scratch

QUESTIONS = (
    "What is in the picture?",
    "Describe the picture.",
    "How many things are there?",
    "What colour is the largest thing?",
    "Is there a red thing?",
    "What is on the left?",
    "Which number can be read?",
    "Is it above or below the middle?",
)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def calibrated(plan: ExportPlan, folder: Path) -> ExportPlan:
    """Return the plan with what the layers read when :data:`QUESTIONS` are asked about images in ``folder``.

    Every other prompt has the pruned budget, the rest all visual tokens.

    Raises:
        UserError: nothing to calibrate, no images there, no ONNX Runtime, or no room for the graphs in float32.
    """
    if plan.precisions.language != "int4":
        raise UserError(
            f"--calibrate is for a language model in int4, not {plan.precisions.language}: leave it out, or add "
            "--precision vision=fp32,language=int4.",
            code="calibration-needs-int4",
        )
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGES)
    if not files:
        raise UserError(
            f"'{folder}' has no images to calibrate with: give a folder of PNG or JPEG files.",
            code="calibration-images-missing",
        )
    moments: dict[str, npt.NDArray[np.float64]] = {}
    temporary, name = Path(tempfile.gettempdir()), f"calibrate-{secrets.token_hex(4)}"
    with scratch(temporary, name, busy=f"'{temporary}' is in use by another calibration: repeat it.") as work:
        _check_room(plan, temporary)
        encoder, assemble, language, recording = _open(plan, work)
        prompts = prompt_encoder(plan, room=plan.spec.decoder.context, fixed=False)
        for i, file in enumerate(files):
            image = plan.family.reader.image(load_image(file), plan.preprocessing, plan.spec.image_size, True)
            seen = see(plan, encoder, assemble, image, plan.selector.signals)
            tokens, kept = (seen.read, np.arange(len(seen.read))) if i % 2 else _pruned(plan, seen)
            turn = Turn("user", QUESTIONS[i % len(QUESTIONS)], images=1)
            prompt = prompts.encode([turn], [len(tokens)])
            where = PlacedImage(np.arange(len(tokens)))
            if plan.numbering == "original":
                where = PlacedImage(where.rows, *kept_places(image, kept, len(seen.read)))
            prompt = prompt.placed(plan.embedding_rows, [where], plan.spec.decoder.rope.axes)
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


def _pruned(plan: ExportPlan, seen: Seen) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return what the selector's reference keeps of each group of rows [k, D], and its places in the image.

    In the order in which it is read.
    """
    rows, picks = zip(*(_pruned_group(plan, seen, group) for group in range(len(seen.tokens))), strict=True)
    if len(rows) == 1:
        return rows[0], picks[0]
    groups = np.repeat(np.arange(len(picks)), [len(kept) for kept in picks])
    order, places = reading_order(groups, np.concatenate(picks), seen.groups.reading)
    return np.concatenate(rows)[order], places


def _pruned_group(plan: ExportPlan, seen: Seen, group: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return what is kept of a group, and which of its rows that stands for; all of one with no more than K rows."""
    selector, tokens, valid = plan.selector, seen.tokens[group], seen.groups.valid[group]
    if valid.sum() <= plan.keep:
        return tokens[valid], np.flatnonzero(valid)
    signals = {name: value[group] for name, value in seen.signals.items()}
    picks = selector.reference(tokens[:, : plan.spec.width], valid, plan.keep, **signals)
    if selector.merge is None:
        return tokens[picks], picks
    return selector.merge.reference(tokens, valid, picks, **signals), picks


def _open(plan: ExportPlan, folder: Path) -> tuple[Any, Any, Any, Recording]:
    """Return sessions of the encoder, what makes rows of tiles (if any does) and the language model, all in float32.

    And what the last one records.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise UserError(
            f"--calibrate runs the model, which needs ONNX Runtime: {install('cpu')}.",
            code="onnxruntime-missing",
        ) from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the two take turns
    vision = build_vision_encoder(plan, Plain("float32"), plan.selector.signals)
    recording = Recording()
    language = build_language_model(
        plan.spec, plan.names, plan.checkpoint, Portable(), recording, token_dtype="float32"
    )

    def opened(model: ir.Model, name: str) -> tuple[GraphInfo, Any]:
        graph = write_graph(model, folder, name)
        session = ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        return graph, session

    graph, encoder = opened(vision, "vision.onnx")
    rows = None
    if plan.spec.rows is not None:
        _, rows = opened(build_assemble(plan, graph), "assemble.onnx")
    return encoder, rows, opened(language, "language.onnx")[1], recording


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
