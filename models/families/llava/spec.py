"""What a LLaVA config says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from divprune_edge.manifest import Preprocessing, TensorInfo, Tiling
from divprune_edge.models.activations import activation
from divprune_edge.models.decoder import DecoderSpec, read_decoder
from divprune_edge.models.families.family import Rows
from divprune_edge.models.files import Config, Shapes, count, setting
from divprune_edge.models.memory import prefill_activations
from divprune_edge.models.towers import VitSpec, read_tower
from divprune_edge.models.towers.signals import signal_shapes
from divprune_edge.models.towers.vit import TowerCut, refuse_cut
from divprune_edge.processing.anyres import most_tiles
from divprune_edge.processing.assembly import rows_of, rows_of_clip, sources_of

TOWER, PROJECTOR = "vision_tower", "multi_modal_projector"
"""The encoder's parts, as graphs and transformers name them."""

# LlavaConfig's own vision tower where a config names none: CLIP ViT-L/14 at 336 pixels.
_VISION_DEFAULT: Config = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True)
class ProjectorSpec:
    """Two linear layers with an activation between them."""

    inputs: int
    outputs: int
    activation: str
    bias: bool

    def parameters(self) -> Shapes:
        """Return name -> shape of its weights, relative to the projector."""
        shapes: Shapes = {
            "linear_1.weight": (self.outputs, self.inputs),
            "linear_2.weight": (self.outputs, self.outputs),
        }
        if self.bias:
            shapes |= {"linear_1.bias": (self.outputs,), "linear_2.bias": (self.outputs,)}
        return shapes

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of projecting ``tokens`` tokens."""
        return 2 * tokens * self.outputs * (self.inputs + self.outputs)


@dataclass(frozen=True)
class LlavaSpec:
    """Everything of a LLaVA checkpoint that a graph depends on."""

    vision: VitSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_token_id: int
    tiling: Tiling | None = None
    video_token_id: int | None = None
    frames: int = 0

    @property
    def tokens(self) -> int:
        """Visual tokens of one tile."""
        return self.vision.tokens

    @property
    def rows(self) -> Rows | None:
        """Those that tiles make; a newline may end each line of a tile's, and ends a clip's."""
        if self.tiling is None:
            return None
        of_image, of_tile = (rows_of(self.tiling, per) for per in ("image", "tile"))
        of_clips = (self.frames, *rows_of_clip(self.tiling, self.frames)) if self.frames else ()
        return Rows(of_image, of_tile, most_tiles(self.tiling), sources_of(self.tiling), *of_clips)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The pixels alone."""
        return (TensorInfo(name="pixels", dtype="uint8", shape=("tiles", *self.image_size, 3)),)

    @property
    def stacked(self) -> int:
        """None."""
        return 0

    @property
    def width(self) -> int:
        """D: width of a visual token."""
        return self.projector.outputs

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the tower's input in pixels."""
        return self.vision.image_size, self.vision.image_size

    @property
    def vision_flops(self) -> int:
        """FLOPs of the tower for one tile."""
        return self.vision.flops

    @property
    def projector_flops(self) -> int:
        """FLOPs of the projector for one tile."""
        return self.projector.flops(self.tokens)

    @property
    def encoder_cut(self) -> TowerCut | None:
        """See :class:`~divprune_edge.models.families.family.Spec`."""
        cut, tower = self.vision.cut, self.vision
        if cut is None:
            return None
        return TowerCut(
            f"{TOWER}/encoder.layers.{cut.layer}",
            cut.layer,
            tower.rows - tower.patches,
            cut.keep,
            tower.uncut_tokens,
        )

    def encoder_activations(self, element_bytes: int) -> int:
        """Return an estimate of the bytes of the tower's activations for one tile."""
        tower = self.vision
        return prefill_activations(
            tower.hidden, tower.intermediate, tower.heads, tower.rows, tower.rows, element_bytes
        )

    def encoder_parameters(self) -> dict[str, Shapes]:
        """Return the weights of each part that the encoder needs."""
        return {TOWER: self.vision.parameters(), PROJECTOR: self.projector.parameters()}

    def signal_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the signals that the encoder can give, and their shapes for one tile."""
        return signal_shapes(self.vision, self.width)

    def for_images(self, facts: Preprocessing) -> LlavaSpec:
        """Return the same model for clips of so many frames; tiles are of one size."""
        return self if facts.clips is None else replace(self, frames=facts.clips.frames)

    def with_encoder_cut(self, layer: int, keep: int) -> LlavaSpec:
        """See :class:`~divprune_edge.models.families.family.Spec`."""
        if self.tiling is not None:
            return refuse_cut("whose images are cut into tiles, as these are put together as whole grids")
        return replace(self, vision=self.vision.with_cut(layer, keep))

    def with_decoder(self, decoder: DecoderSpec) -> LlavaSpec:
        """Return the same model with another decoder."""
        return replace(self, decoder=decoder)


def read_llava(config: Config, *, image_token: int = 32000) -> LlavaSpec:
    """Return the spec of a LLaVA ``config.json``; absent fields take transformers' class defaults.

    ``image_token`` is the placeholder's id where the config has none.

    Raises:
        UserError: settings that are not supported.
    """
    layer = setting(config, "vision_feature_layer", -2, (int, list))
    vision = read_tower(
        setting(config, "vision_config", _VISION_DEFAULT, dict),
        layer,
        setting(config, "vision_feature_select_strategy", "default", str),
    )
    decoder = read_decoder(setting(config, "text_config", {}, dict))
    projector = ProjectorSpec(
        inputs=vision.feature_width,
        outputs=decoder.hidden,
        activation=activation(setting(config, "projector_hidden_act", "gelu", str), "projector_hidden_act"),
        bias=setting(config, "multimodal_projector_bias", True, bool),
    )
    name = "image_token_index" if config.get("image_token_index") is not None else "image_token_id"
    return LlavaSpec(vision, projector, decoder, image_token_id=count(config, name, image_token))
