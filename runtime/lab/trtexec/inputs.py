"""Realistic values for the inputs of every engine: a real image, its visual tokens, a real prompt, real masks.

Without them trtexec fills integers with random values, which are no token ids and no positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.manifest import SelectorInfo, TensorInfo, tile_input
from divprune_edge.models.families import reader_of
from divprune_edge.models.profiles import (
    ASSEMBLE,
    DECODE,
    LANGUAGE,
    PREFILL,
    VISION,
    fitting,
    language_engines,
    vision_profiles,
)
from divprune_edge.processing.images import load_image
from divprune_edge.processing.layout import PlacedImage
from divprune_edge.processing.patches import ROWS
from divprune_edge.processing.prompt import user_turn
from divprune_edge.processing.sources import Video
from divprune_edge.runtime.backends import Encoded
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.trtexec.lines import Files, Stage
from divprune_edge.runtime.lab.trtexec.recording import record_steps
from divprune_edge.runtime.vision import Vision, groups_of, read_clip

Array = npt.NDArray[Any]
MADE_UP = (
    "ONNX Runtime is not installed here: the visual tokens are random numbers instead of the image's, which changes "
    "what is selected but not what it costs."
)


@dataclass(frozen=True)
class _Seen:
    """What a backend made of the image, or what stands for it: tensors by the name that the next graph calls them."""

    tiles: dict[str, Array]
    candidates: dict[str, Array]
    kept: Array
    image: PlacedImage


class Inputs:
    """Values for the stages of a bundle, of one image or clip and one question; ``note`` says what is not real."""

    def __init__(
        self, bundle: Bundle, selector: SelectorInfo | None, media: Path | Video, question: str
    ) -> None:
        self._bundle, self._selector, self._question = bundle, selector, question
        if isinstance(media, Video):
            self._image = read_clip(bundle.manifest, media)
        else:
            reader = reader_of(bundle.manifest.family)
            self._image = reader.image(load_image(media), *bundle.manifest.encoder_input, True)
        self._groups = groups_of(bundle.manifest, self._image)
        self.note = ""

    def vision(self) -> Stage:
        """Return the vision encoder with the image, or with as many of its tiles as a run takes."""
        pixels = self._image.pixels[: self._bundle.manifest.tiles_at_once]
        inputs = {**self._image.inputs, "pixels": pixels}
        profile = fitting(vision_profiles(self._bundle.manifest), inputs)
        return Stage("vision", VISION, profile, inputs, cuda_graph=False)

    def assemble(self) -> Stage:
        """Return what makes rows of the tokens of all tiles; there must be such a graph."""
        info = self._bundle.manifest.assemble
        assert info is not None
        values = {**self._seen.tiles, "rows": self._groups.rows, "weights": self._groups.weights}
        inputs = {tensor.name: values[tensor.name] for tensor in info.inputs}
        return Stage("assemble", ASSEMBLE, 0, inputs, cuda_graph=False)

    def select(self) -> Stage | None:
        """Return the selector with the most rows that it picks from at a time; None where it keeps them all.

        There must be one.
        """
        assert self._selector is not None
        rows = self._groups.valid.sum(axis=1)
        largest = int(rows.argmax())
        if rows[largest] <= self._selector.keep and self._bundle.manifest.assemble is not None:
            return None
        found = self._seen.candidates
        inputs = {info.name: found[info.name][largest : largest + 1] for info in self._selector.inputs}
        return Stage("select", self._selector.id, 0, inputs, cuda_graph=False)

    @property
    def runs(self) -> int:
        """How often the encoder runs for all tiles of the image, or frames of the clip."""
        return -(-len(self._image.pixels) // self._bundle.manifest.tiles_at_once)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the image or clip that the language model sees."""
        keep = self._selector.keep if self._selector else self._bundle.manifest.candidates
        return int(np.minimum(self._groups.valid.sum(axis=1), keep).sum())

    def language(self, engine: str) -> tuple[Stage, Stage]:
        """Return prefill of the whole prompt and the decode step after it, of the language model's graph ``engine``."""
        which = engine.removeprefix(LANGUAGE)
        prefill, decode = self._steps[engine]
        return (
            Stage(f"prefill{which}", engine, PREFILL, prefill, cuda_graph=False),
            Stage(f"decode{which}", engine, DECODE, decode, cuda_graph=True),
        )

    @cached_property
    def _steps(self) -> dict[str, tuple[dict[str, Array], ...]]:
        info, image = self._bundle.manifest.language_model, self._seen.image
        turns = [user_turn(self._question, [self._image])]
        prompt = self._bundle.prompt_encoder().encode_seen(turns, [image])
        steps = record_steps(info, prompt, self._seen.kept)
        return dict(zip(language_engines(info), steps, strict=True))

    @cached_property
    def _seen(self) -> _Seen:
        try:
            from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
        except ImportError:
            self.note = MADE_UP
            return self._make_up()
        backend = OnnxRuntimeBackend(self._bundle, "cpu", None)
        vision = Vision(self._bundle, backend)

        def values(encoded: Encoded) -> dict[str, Array]:
            return {name: np.array(backend.to_host(value)) for name, value in encoded.outputs.items()}

        tiles: Encoded | None = None
        if self._bundle.manifest.assemble is None:
            candidates = vision.encode([self._image], [self._selector])
        else:
            tiles = vision.tiles(self._image)
            candidates = vision.assemble(self._image, tiles)
        seen = vision.select(candidates, self._selector)
        return _Seen(
            {tile_input(name): value for name, value in values(tiles).items()} if tiles is not None else {},
            {"valid": candidates.valid, **values(candidates.encoded)},
            np.array(backend.to_host(seen.tokens)),
            seen.images[0],
        )

    def _make_up(self) -> _Seen:
        manifest, random = self._bundle.manifest, np.random.default_rng(0)
        valid, image = self._groups.valid, self._image
        # The tokens of images of any size are held together, and are rows.
        sizes = {ROWS: int(valid.sum()), "frames": 1}

        def made(tensors: Sequence[TensorInfo], first: int) -> dict[str, Array]:
            shapes = {
                tensor.name: tuple(
                    sizes.get(size, first) if isinstance(size, str) else size for size in tensor.shape
                )
                for tensor in tensors
            }
            return {
                tensor.name: random.standard_normal(shapes[tensor.name]).astype(tensor.dtype)
                for tensor in tensors
            }

        given = [] if manifest.assemble is None else manifest.assemble.inputs
        tiles = made([tensor for tensor in given if tensor.name.startswith("tile_")], len(image.pixels))
        found = made(manifest.features.outputs, len(valid))
        keep = self._selector.keep if self._selector else manifest.candidates
        some = valid[:, :keep]
        rows, kept = np.flatnonzero(some), np.sort(self._groups.reading[:, :keep][some])
        tokens = found["visual_tokens"][:, :keep].reshape(1, -1, manifest.vision_encoder.width)
        places = None if image.places is None else image.places[:, kept]
        placed = PlacedImage(rows, places, image.ahead, image.spans(kept))
        return _Seen(tiles, {"valid": valid, **found}, tokens, placed)


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
