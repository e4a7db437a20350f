"""Images of a folder with a question about each, as prompts for the language model: what it is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.assemble import build_assemble
from divprune_edge.export.formats.plain import Plain
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
from divprune_edge.processing.prompt import PromptEncoder, Turn

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


def images_in(folder: Path, code: str) -> list[Path]:
    """Return a folder's images in the order of their names.

    Raises:
        UserError: there are none, with ``code``.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}': give one of PNG or JPEG files.", code=code)
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGES)
    if not files:
        raise UserError(
            f"'{folder}' has no images to look at: give a folder of PNG or JPEG files.", code=code
        )
    return files


@dataclass(frozen=True)
class Examples:
    """What makes prompts of images: sessions of the encoder and of what makes rows of tiles, where any does."""

    plan: ExportPlan
    prompts: PromptEncoder
    encoder: Any
    assemble: Any

    def prompt(self, file: Path, question: str, *, pruned: bool = True) -> tuple[PromptIds, npt.NDArray[Any]]:
        """Return a prompt about an image, and its visual tokens [k, D], by the plan's selector or all of them."""
        plan = self.plan
        image = plan.family.reader.image(load_image(file), plan.preprocessing, plan.spec.image_size, True)
        seen = see(plan, self.encoder, self.assemble, image, plan.selector.signals)
        tokens, kept = pruned_rows(plan, seen) if pruned else (seen.read, np.arange(len(seen.read)))
        where = PlacedImage(np.arange(len(tokens)))
        if plan.numbering == "original":
            where = PlacedImage(where.rows, *kept_places(image, kept, len(seen.read)))
        return self.prompts.encode_seen([Turn("user", question, images=1)], [where]), tokens


def open_examples(plan: ExportPlan, work: Path, option: str) -> Examples:
    """Write the vision graphs in float32 to the folder ``work``, and open them.

    Raises:
        UserError: there is no ONNX Runtime; ``option`` is what needs it.
    """
    vision = build_vision_encoder(plan, Plain("float32"), plan.selector.signals)
    graph, encoder = open_graph(vision, work, "vision.onnx", option)
    rows = None
    if plan.spec.rows is not None:
        _, rows = open_graph(build_assemble(plan, graph), work, "assemble.onnx", option)
    prompts = prompt_encoder(plan, plan.spec.decoder.context)
    return Examples(plan, prompts, encoder, rows)


def open_graph(model: ir.Model, folder: Path, name: str, option: str) -> tuple[GraphInfo, Any]:
    """Write a graph and open it in ONNX Runtime.

    Raises:
        UserError: there is none; ``option`` is what needs it.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise UserError(
            f"{option} runs the model, which needs ONNX Runtime: {install('cpu')}.",
            code="onnxruntime-missing",
        ) from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions take turns
    graph = write_graph(model, folder, name)
    session = ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    return graph, session


def pruned_rows(plan: ExportPlan, seen: Seen) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
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
