"""Qwen2.5-VL and Qwen3-VL as a whole: tower, mergers and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import VISUAL_TOKENS, Preprocessing, TensorInfo
from divprune_edge.models.budget import USUAL_TOKENS
from divprune_edge.models.decoder import DecoderSpec, read_decoder
from divprune_edge.models.families.family import Rows
from divprune_edge.models.families.qwen_vl.encoder import write_qwen_encoder
from divprune_edge.models.families.qwen_vl.inputs import encoder_inputs
from divprune_edge.models.families.qwen_vl.spec import TOWER, QwenVisionSpec, read_qwen_vision
from divprune_edge.models.files import Config, Shapes, count, setting
from divprune_edge.models.graph import Builder, Layers
from divprune_edge.models.memory import prefill_activations
from divprune_edge.models.towers.vit import refuse_cut
from divprune_edge.processing.patches import most_of_clip, most_tokens


@dataclass(frozen=True)
class QwenSpec:
    """Everything of a Qwen-VL checkpoint that a graph depends on.

    ``tokens`` is the most of an image; ``clips`` counts grids, tokens and those of a grid of a clip, at most.
    """

    vision: QwenVisionSpec
    decoder: DecoderSpec
    image_token_id: int
    tokens: int
    video_token_id: int | None = None
    clips: tuple[int, int, int] | None = None

    @property
    def rows(self) -> Rows:
        """The tokens of an image as they come, padded to those of the largest."""
        return Rows(self.tokens, self.tokens, 1, 1, *(self.clips or ()))

    @property
    def stacked(self) -> int:
        """Features of the tower's layers (DeepStack; Meng et al. 2024, 2406.04334)."""
        return len(self.vision.deepstack)

    @property
    def width(self) -> int:
        """D: width of a visual token."""
        return self.vision.width

    @property
    def image_size(self) -> None:
        """Images may have any size."""
        return

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The patches, and what the tower is told of their grid."""
        return tuple(
            TensorInfo(name=name, dtype=dtype, shape=tuple(shape))
            for name, (dtype, shape) in encoder_inputs(self.vision).items()
        )

    @property
    def vision_flops(self) -> int:
        """FLOPs of the tower for the largest image."""
        return self.vision.flops(self.tokens * self.vision.merge**2)

    @property
    def projector_flops(self) -> int:
        """FLOPs of the mergers for the largest image."""
        return self.vision.merger_flops(self.tokens * self.vision.merge**2)

    @property
    def encoder_cut(self) -> None:
        """Nowhere."""
        return None

    def encoder_activations(self, element_bytes: int) -> int:
        """Return an estimate of the bytes of the tower's activations for the largest image."""
        tower, patches = self.vision, self.tokens * self.vision.merge**2
        return prefill_activations(
            tower.hidden, tower.intermediate, tower.heads, patches, patches, element_bytes
        )

    def encoder_parameters(self) -> dict[str, Shapes]:
        """Return the tower's weights, which the mergers' are among."""
        return {TOWER: self.vision.parameters()}

    def signal_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return no signals: the tower has no class token, and no attention of its own is written out."""
        return {}

    def with_encoder_cut(self, layer: int, keep: int) -> QwenSpec:
        """See :class:`~divprune_edge.models.families.family.Spec`."""
        return refuse_cut("which merge neighbouring patches")

    def with_decoder(self, decoder: DecoderSpec) -> QwenSpec:
        """Return the same model with another decoder."""
        return replace(self, decoder=decoder)

    def for_images(self, facts: Preprocessing) -> QwenSpec:
        """Return the same model for images as large as the preprocessing makes them."""
        assert facts.patches is not None
        clips = facts.clips
        return replace(
            self,
            tokens=most_tokens(facts.patches),
            clips=None if clips is None else (-(-clips.frames // clips.depth), *most_of_clip(facts)),
        )


def read_qwen(config: Config, kind: str) -> QwenSpec:
    """Return the spec of a ``config.json``; absent fields take transformers' class defaults.

    Args:
        config: of the whole.
        kind: of its tower and, with ``_text``, of its decoder, where their configs name none.

    Raises:
        UserError: settings that are not supported.
    """
    vision = read_qwen_vision(setting(config, "vision_config", {}, dict), kind)
    # Before transformers 4.52 the language model's settings were the whole's.
    text: Mapping[str, Any] = setting(config, "text_config", None, dict) or config
    named = text.get("model_type")
    decoder = read_decoder({**text, "model_type": f"{kind}_text" if named in (None, kind) else named})
    if vision.width != decoder.hidden:
        raise UserError(
            f"The vision tower gives tokens of {vision.width} values, but the language model's have {decoder.hidden}.",
            code="config-inconsistent",
        )
    image, video = count(config, "image_token_id", 151655), count(config, "video_token_id", 151656)
    return QwenSpec(vision, decoder, image, USUAL_TOKENS, video)


def write_encoder(
    g: Builder,
    parts: Mapping[str, Layers],
    inputs: Mapping[str, Any],
    spec: QwenSpec,
    preprocessing: Preprocessing,
    signals: Sequence[str],
) -> dict[str, Any]:
    """Write the tower and its mergers; a row is a token and, behind it, what is for the decoder's first layers."""
    found = write_qwen_encoder(g, parts[TOWER], inputs, spec.vision, preprocessing)
    rows = found[VISUAL_TOKENS]
    if spec.stacked:
        rows = g.op("Concat", rows, *(found[name] for name in spec.vision.beside), axis=-1)
    return {VISUAL_TOKENS: rows}


def sample_sizes(spec: QwenSpec) -> list[tuple[int, int]]:
    """Return sizes of images that fill windows and do not."""
    factor = spec.vision.factor
    return [
        (6 * factor, 9 * factor),
        (2 * factor + 5, 10 * factor),
        (11 * factor, 3 * factor - 7),
        (factor, factor),
    ]
