"""Realistic values for the inputs of every engine: a real image, its visual tokens, a real prompt, real masks.

Without them trtexec fills integers with random values, which are no token ids and no positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.manifest import SelectorInfo
from divprune_edge.models.families import family_named
from divprune_edge.processing.images import load_image
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends.session import check_room
from divprune_edge.runtime.backends.steps import STEPS
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.profiles import DECODE, LANGUAGE, PREFILL, VISION
from divprune_edge.runtime.lab.trtexec.lines import CACHES, Files, Stage
from divprune_edge.runtime.vision import Vision

Array = npt.NDArray[Any]
MADE_UP = (
    "ONNX Runtime is not installed here: the visual tokens are random numbers instead of the image's, which changes "
    "what is selected but not what it costs."
)


class Inputs:
    """Values for the stages of a bundle, of one image and one question; ``note`` says what is not real, if any."""

    def __init__(self, bundle: Bundle, selector: SelectorInfo | None, image: Path, question: str) -> None:
        self._bundle, self._selector, self._question = bundle, selector, question
        family = family_named(bundle.manifest.family)
        self._image = family.read(load_image(image), *bundle.manifest.encoder_input, True)
        self._seen: tuple[dict[str, Array], Array] | None = None
        self.note = ""

    def vision(self) -> Stage:
        """Return the vision encoder with the image."""
        return Stage("vision", VISION, 0, {"pixels": self._image.pixels}, cuda_graph=False)

    def select(self) -> Stage:
        """Return the selector with the image's visual tokens; there must be one."""
        assert self._selector is not None
        tokens, _ = self._tokens()
        inputs = {info.name: tokens[info.name] for info in self._selector.inputs}
        return Stage("select", self._selector.id, 0, inputs, cuda_graph=False)

    def language(self) -> tuple[Stage, Stage]:
        """Return prefill of the whole prompt and the decode step after it."""
        info = self._bundle.manifest.language_model
        assert info.capacity is not None
        _, kept = self._tokens()
        turns = [Turn("user", self._question, images=1)]
        ids = np.array([self._bundle.prompt_encoder().encode(turns, [kept.shape[1]]).ids], np.int64)
        length = ids.shape[1]
        check_room(length + 1, info.positions, fixed=info.positions < info.context)
        step, rows = STEPS[info.dialect], np.arange(length + 1)[None]
        shape = (1, info.kv_heads, info.capacity, info.head_dim)
        empty = np.zeros(shape, info.cache_dtype)
        filled = empty.copy()
        # What a cache holds does not change what a step costs, as long as it is finite: one file serves all layers.
        filled[:, :, :length] = np.random.default_rng(0).standard_normal(filled[:, :, :length].shape)
        prefill = {
            **step(ids, rows[:, :length], np.array([0]), info.capacity, info.window),
            "visual_tokens": kept,
            CACHES: empty,
        }
        decode = {
            **step(ids[:, -1:], rows[:, length:], np.array([length]), info.capacity, info.window),
            "visual_tokens": kept,
            CACHES: filled,
        }
        return (
            Stage("prefill", LANGUAGE, PREFILL, prefill, cuda_graph=False),
            Stage("decode", LANGUAGE, DECODE, decode, cuda_graph=True),
        )

    def _tokens(self) -> tuple[dict[str, Array], Array]:
        """Return the selector's inputs by name, and the kept tokens."""
        if self._seen is None:
            self._seen = self._look()
        return self._seen

    def _look(self) -> tuple[dict[str, Array], Array]:
        try:
            from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
        except ImportError:
            self.note = MADE_UP
            return self._make_up()
        backend = OnnxRuntimeBackend(self._bundle, "cpu", None)
        vision = Vision(self._bundle, backend)
        candidates = vision.encode([self._image], [self._selector])
        seen = vision.select(candidates, self._selector)
        found = {"visual_tokens": candidates.encoded.tokens, **candidates.encoded.signals}
        values = {name: np.array(backend.to_host(value)) for name, value in found.items()}
        return {"valid": candidates.valid, **values}, np.array(backend.to_host(seen.tokens))

    def _make_up(self) -> tuple[dict[str, Array], Array]:
        manifest, random = self._bundle.manifest, np.random.default_rng(0)
        valid = np.ones((1, manifest.candidates), np.bool_)
        found: dict[str, Array] = {"valid": valid}
        for output in manifest.vision_encoder.outputs:
            shape = tuple(1 if isinstance(size, str) else size for size in output.shape)
            found[output.name] = random.standard_normal(shape).astype(output.dtype)
        keep = self._selector.keep if self._selector else valid.shape[1]
        return found, found["visual_tokens"][:, :keep]


def write_inputs(stages: Iterable[Stage], files: Files) -> None:
    """Write the values of every stage, as trtexec reads them: bytes and nothing else.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        for stage in stages:
            for name, values in stage.inputs.items():
                path = files.input(stage.name, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, np.ascontiguousarray(values).tobytes())
    except OSError as error:
        raise UserError(
            f"'{files.folder}' cannot be written ({error.strerror or error}): choose another --output.",
            code="output-unwritable",
        ) from None
