"""The LLaVA-1.5 family: a CLIP tower, a two-layer projector and a decoder (Liu et al. 2023, 2310.03744)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from divprune_edge.errors import UserError
from divprune_edge.models.activations import activation
from divprune_edge.models.clip import ClipVisionSpec, Shapes, read_clip
from divprune_edge.models.decoder import DecoderSpec, read_decoder
from divprune_edge.models.files import Config, count, setting

FAMILY = "llava"

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

# Named are only conversions that exist and that can be exported.
_ORIGINAL = (
    "it has the layout of the original LLaVA code (its config.json names an mm_vision_tower), and only the layout of "
    "transformers' LlavaForConditionalGeneration can be read. Of LLaVA-1.5 there are conversions "
    "(llava-hf/llava-1.5-7b-hf and llava-hf/llava-1.5-13b-hf); for other models, such as fine-tunes, ask their authors "
    "for one"
)

_OTHERS = {
    "llava_next": "LLaVA-NeXT (LLaVA-1.6) cuts an image into several tiles, which is not supported yet",
    "llava_next_video": "LLaVA-NeXT-Video is not supported yet",
    "llava_onevision": "LLaVA-OneVision is not supported yet",
    "llava_llama": _ORIGINAL,
    "llava_mistral": _ORIGINAL,
    "vipllava": "ViP-LLaVA is not supported",
    "video_llava": "Video-LLaVA is not supported",
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


@dataclass(frozen=True)
class LlavaSpec:
    """Everything of a LLaVA-1.5 checkpoint that a graph depends on."""

    vision: ClipVisionSpec
    projector: ProjectorSpec
    decoder: DecoderSpec
    image_token_id: int

    @property
    def tokens(self) -> int:
        """N: visual tokens of one image."""
        return self.vision.tokens

    @property
    def width(self) -> int:
        """D: width of a visual token."""
        return self.projector.outputs

    def truncated(self, layers: int) -> LlavaSpec:
        """Return the same model with only the first ``layers`` decoder layers."""
        return replace(self, decoder=replace(self.decoder, layers=layers))


def read_llava(config: Config) -> LlavaSpec:
    """Return the spec of a LLaVA-1.5 ``config.json``; absent fields take transformers' class defaults.

    Raises:
        UserError: another family (named, with what to do), or settings that are not supported.
    """
    _refuse_others(config)
    layer = setting(config, "vision_feature_layer", -2, (int, list))
    vision = read_clip(
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
    return LlavaSpec(vision, projector, decoder, image_token_id=count(config, name, 32000))


def _refuse_others(config: Config) -> None:
    kind = config.get("model_type")
    if "mm_vision_tower" in config:
        raise UserError(f"This checkpoint cannot be exported: {_OTHERS['llava_llama']}.")
    if kind in _OTHERS:
        raise UserError(f"This checkpoint ('{kind}') cannot be exported: {_OTHERS[str(kind)]}.")
    if kind != FAMILY:
        raise UserError(
            f"config.json is not a LLaVA config: its model_type is {kind!r}, expected 'llava' "
            "(a checkpoint such as llava-hf/llava-1.5-7b-hf)."
        )
    if config.get("quantization_config"):
        raise UserError(
            "The checkpoint's weights are already quantised (config.json has a quantization_config): "
            "export the original checkpoint and choose a --precision instead."
        )


@dataclass(frozen=True)
class WeightNames:
    """Where each part's weights live in a checkpoint: a prefix for each, and the output head's full name."""

    vision: str
    projector: str
    decoder: str
    head: str

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return self.head == f"{self.decoder}embed_tokens.weight"

    def parameters(self, spec: LlavaSpec, rows: int, vocabulary: int) -> Shapes:
        """Return full name -> expected shape of every weight that the graphs need."""
        parts: Mapping[str, Shapes] = {
            self.vision: spec.vision.parameters(),
            self.projector: spec.projector.parameters(),
            self.decoder: spec.decoder.parameters(rows),
        }
        shapes = {prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()}
        return shapes | {self.head: (vocabulary, spec.decoder.hidden)}


# The prefixes of the namings in the wild: before and since transformers 4.52, and since 5.0.
_VISION = (
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
)
_PROJECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")
_DECODER = ("model.language_model.", "language_model.model.", "model.language_model.model.")
_HEAD = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "model.lm_head.weight",
    "model.language_model.lm_head.weight",
)


def find_weights(names: Collection[str], tied: bool) -> WeightNames:
    """Return the naming of a checkpoint from the names of its tensors.

    Args:
        names: all tensor names.
        tied: whether the config ties the output head to the embedding, for checkpoints that store no head.

    Raises:
        UserError: a part is missing.
    """
    decoder = _prefix(_DECODER, "embed_tokens.weight", names, "language model")
    head = next((name for name in _HEAD if name in names), None)
    if head is None:
        if not tied:
            raise UserError(
                "The checkpoint has no lm_head.weight and its config does not tie the output head to the "
                "embedding (tie_word_embeddings): a shard is missing, download the checkpoint again."
            )
        head = f"{decoder}embed_tokens.weight"
    return WeightNames(
        vision=_prefix(_VISION, "embeddings.class_embedding", names, "vision tower"),
        projector=_prefix(_PROJECTOR, "linear_1.weight", names, "projector"),
        decoder=decoder,
        head=head,
    )


def _prefix(prefixes: tuple[str, ...], probe: str, names: Collection[str], part: str) -> str:
    for prefix in prefixes:
        if prefix + probe in names:
            return prefix
    raise UserError(
        f"The checkpoint has no weights of the {part} (looked for '{prefixes[0]}{probe}' and "
        f"{len(prefixes) - 1} other spellings): a shard is missing or this is not a LLaVA checkpoint."
    )
