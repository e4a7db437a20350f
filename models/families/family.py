"""What a model family is to the rest of the project: one object, with the spec that it reads from a config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from divprune_edge.manifest import Clips, Numbering, Preprocessing, TensorInfo
    from divprune_edge.models.decoder import DecoderSpec
    from divprune_edge.models.families.reader import Reader
    from divprune_edge.models.files import CheckpointFiles, Config, Shapes
    from divprune_edge.models.graph import Builder, Layers
    from divprune_edge.models.towers.vit import TowerCut
    from divprune_edge.processing.image_input import ImageInput

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

DECODER, HEAD = "language_model", "lm_head"
"""What the decoder and the output head are called in graphs."""
ASSEMBLE = "assemble"
"""What the graph is called that makes rows of the tokens of several tiles."""


@dataclass(frozen=True)
class Rows:
    """How many rows the ``assemble`` graph makes, at most.

    Attributes:
        most: of an image.
        most_of_tile: of one of its tiles.
        tiles: of an image.
        sources: tokens that a row is made of.
        frames: of a clip, as the encoder takes them; 0 where there are no clips.
        most_of_clip: of a clip.
        most_of_frame: of one of its frames.
    """

    most: int
    most_of_tile: int
    tiles: int
    sources: int
    frames: int = 0
    most_of_clip: int = 0
    most_of_frame: int = 0


class Spec(Protocol):
    """Everything of a checkpoint that a graph depends on, as far as no family is meant."""

    @property
    def decoder(self) -> DecoderSpec:
        """The language model."""
        ...

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder of an image."""
        ...

    @property
    def video_token_id(self) -> int | None:
        """Id of the placeholder of a clip, None where the family takes none."""
        ...

    @property
    def tokens(self) -> int:
        """Visual tokens of one tile; the most that there may be where they vary."""
        ...

    @property
    def rows(self) -> Rows | None:
        """How tokens become an image's rows, None where those of its one tile are its rows."""
        ...

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """What the encoder takes: ``pixels`` uint8 [tiles, …], and what is the same for all tiles of an image."""
        ...

    @property
    def stacked(self) -> int:
        """How many of the decoder's first layers are followed by features of the encoder, added at visual tokens.

        They lie behind the token in a row of the visual tokens.
        """
        ...

    @property
    def width(self) -> int:
        """D: width of a visual token."""
        ...

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of a tile in pixels; None where they vary."""
        ...

    @property
    def vision_flops(self) -> int:
        """FLOPs of the vision tower for one tile."""
        ...

    @property
    def projector_flops(self) -> int:
        """FLOPs of the projector for one tile."""
        ...

    @property
    def encoder_cut(self) -> TowerCut | None:
        """Where patches leave inside the tower; None: nowhere."""
        ...

    def encoder_activations(self, element_bytes: int) -> int:
        """Return an estimate of the bytes of the encoder's activations for one tile."""
        ...

    def encoder_parameters(self) -> Mapping[str, Shapes]:
        """Return, for each part of the encoder by its name in the graph, the weights that the graph needs."""
        ...

    def signal_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the signals that the encoder can give, and their shapes for one tile."""
        ...

    def for_images(self, facts: Preprocessing) -> Spec:
        """Return the same model for images as large as the preprocessing makes them."""
        ...

    def with_encoder_cut(self, layer: int, keep: int) -> Spec:
        """Return the same model, of whose patches ``keep`` go on behind the tower's first ``layer`` layers.

        Raises:
            UserError: it cannot.
        """
        ...

    def with_decoder(self, decoder: DecoderSpec) -> Spec:
        """Return the same model with another decoder: fewer layers, other windows."""
        ...


@dataclass(frozen=True)
class WeightNames:
    """Where each part's weights live in a checkpoint.

    ``encoder`` has a prefix for each of the encoder's parts, by the part's name in the graph; ``decoder`` is a prefix,
    ``head`` the output head's full name, ``newline`` that of the row which ends a line of tiles' tokens, if there is
    one.
    """

    encoder: Mapping[str, str]
    decoder: str
    head: str
    newline: str | None = None

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return self.head == f"{self.decoder}embed_tokens.weight"

    def in_encoder(self, name: str) -> bool:
        """Whether a weight, by its full name, belongs to the encoder, or to what makes rows of its tokens."""
        return name.startswith(tuple(self.encoder.values())) or name == self.newline

    def split(self, name: str) -> tuple[str, str]:
        """Return the part that a weight is of, and its name there; an empty part where there is none."""
        if name == self.newline:
            return ASSEMBLE, ""
        prefixes = {**self.encoder, DECODER: self.decoder}
        # The longest prefix is the right one where one is the beginning of another.
        part = max(
            (p for p in prefixes if name.startswith(prefixes[p])), key=lambda p: len(prefixes[p]), default=""
        )
        return part, name.removeprefix(prefixes.get(part, ""))

    def parameters(self, spec: Spec, rows: int, vocabulary: int) -> Shapes:
        """Return full name -> expected shape of every weight that the graphs need."""
        parts = {self.encoder[part]: shapes for part, shapes in spec.encoder_parameters().items()}
        parts[self.decoder] = spec.decoder.parameters(rows)
        shapes = {prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()}
        if self.newline is not None:
            shapes[self.newline] = (spec.width,)
        return shapes | {self.head: (vocabulary, spec.decoder.hidden)}


class Model(Protocol):
    """transformers' model of a checkpoint, as the verification opens it; parts as in :class:`WeightNames`."""

    def record(
        self, part: str, pixels: Pixels, modules: Sequence[str]
    ) -> tuple[list[Array], dict[str, Array]]:
        """Run a part on uint8 ``pixels``; return its hidden states, and what the modules named in it put out."""
        ...

    def apply(self, part: str, features: Array) -> Array:
        """Run a part on ``features``."""
        ...


Process = Callable[[Pixels], Mapping[str, Any]]
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Reference(Generic[S]):
    """How transformers' own model of a family is reached. Handles are opaque: nothing here imports it.

    Attributes:
        model: name of its class.
        processor: ``(class that the checkpoint names, if it does)`` returns the name of an image processor's class that
            rescales and normalises as that does.
        modules: ``(model)`` returns the modules of the encoder's parts.
        visual_tokens: ``(model, processor, images)`` returns a tensor [N, D] for each image; ``processor`` makes
            ``pixel_values`` of uint8 [n, H, W, 3].
        signals: ``(spec, model, uint8 pixels)`` returns every signal, computed from what the model computes.
        unused: ``(spec, config, part, name)`` says whether no graph needs a weight of an encoder's part.
    """

    model: str
    processor: Callable[[str | None], str]
    modules: Callable[[Any], Mapping[str, Any]]
    visual_tokens: Callable[[Any, Process, Sequence[ImageInput]], Sequence[Any]]
    signals: Callable[[S, Model, Pixels], dict[str, Array]]
    unused: Callable[[S, Config, str, str], bool]


@dataclass(frozen=True)
class Family(Generic[S]):
    """One model family.

    Attributes:
        name: the ``model_type`` of its configs, and its name in manifests.
        template: the chat template for checkpoints that carry none.
        presets: name -> config of well-known checkpoints, so that nobody needs to download one to count.
        spec: reads a ``config.json``; absent fields take transformers' class defaults.
        canonical_name: ``(name)`` of a weight or module returns one name for all its spellings, such as
            ``decoder.norm.weight``; None where it is in no part.
        weight_names: ``(names of all tensors, whether the config ties the output head to the embedding)``.
        preprocessing: reads the image processor's facts.
        reader: what makes the encoder's input of images and clips.
        sample_sizes: ``(spec)`` returns heights and widths of four images that verification looks at.
        encoder: ``(builder, layers of each part, inputs, spec, facts, signals)`` writes the encoder; returns
            :data:`~divprune_edge.manifest.VISUAL_TOKENS` [tiles, n, D · (1 + stacked)] and the signals, by name.
        reference: what verification compares with.
        clips: ``(files, spec, most frames, most pixels of a frame or None)`` reads the video processor's facts.
        numbering: how what is left of a prompt's images is numbered where nothing else is asked for; see the manifest.
    """

    name: str
    template: str
    presets: Mapping[str, Config]
    spec: Callable[[Config], S]
    canonical_name: Callable[[str], str | None]
    weight_names: Callable[[Collection[str], bool], WeightNames]
    preprocessing: Callable[[CheckpointFiles, S], Preprocessing]
    reader: Reader
    sample_sizes: Callable[[S], Sequence[tuple[int, int]]]
    encoder: Callable[
        [Builder, Mapping[str, Layers], Mapping[str, Any], S, Preprocessing, Sequence[str]], Mapping[str, Any]
    ]
    reference: Reference[S]
    clips: Callable[[CheckpointFiles, S, int, int | None], Clips] | None = None
    numbering: Numbering = "compact"
