"""A vision transformer (Dosovitskiy et al. 2020, 2010.11929): what the kinds of towers have in common, as one spec."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

from divprune_edge.errors import UserError
from divprune_edge.models.activations import activation
from divprune_edge.models.files import Config, Shapes, count, layers, setting

PROBE = "embeddings.patch_embedding.weight"
"""A weight that every tower has."""


@dataclass(frozen=True)
class VitCut:
    """Patches that leave inside the tower: behind its first ``layer`` layers, ``keep`` of them go on."""

    layer: int
    keep: int


@dataclass(frozen=True)
class TowerCut:
    """The same, as far as no tower is meant.

    Attributes:
        module: the first one that patches miss, as ``part/name``.
        layer: how many layers all patches go through.
        first: rows of a hidden state that are no patches, before them.
        keep: patches that go on.
        tokens: visual tokens of an image if none left.
    """

    module: str
    layer: int
    first: int
    keep: int
    tokens: int


def refuse_cut(reason: str) -> NoReturn:
    """Refuse a cut for models of a kind, such as "which merge neighbouring patches".

    Raises:
        UserError: always.
    """
    raise UserError(
        f"--encoder-cut does not go with models {reason}: leave it out.", code="encoder-cut-unsupported"
    )


@dataclass(frozen=True)
class VitSpec:
    """Sizes of a vision transformer, its kind's switches, and what a family takes of it.

    Attributes:
        class_token: whether a row that is no patch comes first.
        pre_norm: whether the rows are normalised before the first layer.
        patch_bias: whether the convolution that makes patches has a bias.
        feature_states: indices into the hidden states (0 = what enters the first layer, i = after layer i); several
            of them are concatenated on the last axis.
        drops_first: whether the feature goes without its first row (strategy "default"). That is the class token, or
            a patch where there is none.
        cut: where most patches leave before the last layer; None: nowhere.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    norm_eps: float
    activation: str
    class_token: bool
    pre_norm: bool
    patch_bias: bool
    feature_states: tuple[int, ...]
    drops_first: bool
    cut: VitCut | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def patches(self) -> int:
        """Number of patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def rows(self) -> int:
        """n: rows of a hidden state."""
        return self.patches + int(self.class_token)

    @property
    def last_rows(self) -> int:
        """Rows of the feature: fewer than ``rows`` behind a cut."""
        return self.rows if self.cut is None else self.cut.keep + int(self.class_token)

    @property
    def tokens(self) -> int:
        """N: visual tokens of one image."""
        return self.last_rows - int(self.drops_first)

    @property
    def uncut_tokens(self) -> int:
        """Visual tokens of one image, were there no cut."""
        return self.rows - int(self.drops_first)

    @property
    def feature_width(self) -> int:
        """Width of the feature that enters the projector."""
        return self.hidden * len(self.feature_states)

    @property
    def used_layers(self) -> int:
        """Encoder layers that the feature needs; later ones are never exported."""
        return max(self.feature_states)

    @property
    def flops(self) -> int:
        """FLOPs of one image, used layers only: ``2 L (4 n h^2 + 2 n^2 h + 2 n h m)`` + patches."""
        h, cut = self.hidden, self.cut
        whole = self.used_layers if cut is None else cut.layer
        total = self.patches * h * 3 * self.patch_size**2
        for n, depth in ((self.rows, whole), (self.last_rows, self.used_layers - whole)):
            total += depth * (4 * n * h * h + 2 * n * n * h + 2 * n * h * self.intermediate)
        return 2 * total

    def with_cut(self, layer: int, keep: int) -> VitSpec:
        """Return the same, of whose patches ``keep`` go on behind the first ``layer`` layers.

        Raises:
            UserError: there is no such layer before the feature, not so many patches, or the feature goes without its
                first patch.
        """
        last = min(self.feature_states) - 1
        if not 1 <= layer <= last:
            raise UserError(
                f"--encoder-cut is behind layer {layer}, expected 1 to {last}: the feature is made of what layer "
                f"{last + 1} gives.",
                code="encoder-cut-out-of-range",
            )
        if not 2 <= keep < self.patches:
            raise UserError(
                f"--encoder-cut keeps {keep} patches, expected 2 to {self.patches - 1} of {self.patches}.",
                code="encoder-cut-out-of-range",
            )
        if self.drops_first and not self.class_token:
            refuse_cut("whose feature goes without its first patch")
        return replace(self, cut=VitCut(layer, keep))

    def parameters(self) -> Shapes:
        """Return name -> shape of every weight that the exported part needs, relative to the tower."""
        h, m, p = self.hidden, self.intermediate, self.patch_size
        shapes: Shapes = {PROBE: (h, 3, p, p), "embeddings.position_embedding.weight": (self.rows, h)}
        if self.class_token:
            shapes["embeddings.class_embedding"] = (h,)
        if self.patch_bias:
            shapes["embeddings.patch_embedding.bias"] = (h,)
        if self.pre_norm:
            shapes |= {"pre_layrnorm.weight": (h,), "pre_layrnorm.bias": (h,)}
        for i in range(self.used_layers):
            layer = f"encoder.layers.{i}."
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{layer}{norm}.weight": (h,), f"{layer}{norm}.bias": (h,)}
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                name = f"{layer}self_attn.{projection}"
                shapes |= {f"{name}.weight": (h, h), f"{name}.bias": (h,)}
            shapes |= {f"{layer}mlp.fc1.weight": (m, h), f"{layer}mlp.fc1.bias": (m,)}
            shapes |= {f"{layer}mlp.fc2.weight": (h, m), f"{layer}mlp.fc2.bias": (h,)}
        return shapes


def check_tower(config: Config, channels: str, hidden: int, heads: int) -> None:
    """Check what every tower has to be; ``channels`` is the config's name of their number.

    Raises:
        UserError: images have other channels than three, or heads do not divide the width.
    """
    if count(config, channels, 3) != 3:
        raise UserError(
            f"The vision tower takes {config[channels]} channels, supported are 3.", code="config-unsupported"
        )
    if hidden % heads:
        raise UserError(
            f"The vision tower's hidden size {hidden} does not divide by {heads} heads.",
            code="config-inconsistent",
        )


def read_vit(
    config: Config,
    feature_layer: int | list[int],
    strategy: str,
    *,
    patch_size: int,
    norm_eps: float,
    activation_name: str,
    class_token: bool,
    pre_norm: bool,
    patch_bias: bool,
) -> VitSpec:
    """Return the spec of a ``vision_config`` whose kind has these defaults and switches.

    Sizes that no kind disagrees about have their defaults here. ``feature_layer`` and ``strategy`` are as in
    :func:`divprune_edge.models.towers.read_tower`.

    Raises:
        UserError: sizes that do not fit each other, or no such feature.
    """
    depth = layers(config, 12)
    spec = VitSpec(
        hidden=count(config, "hidden_size", 768),
        intermediate=count(config, "intermediate_size", 3072),
        layers=depth,
        heads=count(config, "num_attention_heads", 12),
        image_size=count(config, "image_size", 224),
        patch_size=count(config, "patch_size", patch_size),
        norm_eps=setting(config, "layer_norm_eps", norm_eps, float),
        activation=activation(setting(config, "hidden_act", activation_name, str), "vision hidden_act"),
        class_token=class_token,
        pre_norm=pre_norm,
        patch_bias=patch_bias,
        feature_states=_feature_states(feature_layer, depth),
        drops_first=_drops_first(strategy),
    )
    check_tower(config, "num_channels", spec.hidden, spec.heads)
    if spec.image_size < spec.patch_size:
        raise UserError(
            f"The vision tower's image size {spec.image_size} is smaller than its patches of {spec.patch_size}.",
            code="config-inconsistent",
        )
    if not spec.tokens:
        raise UserError(
            f"The vision tower gives one row per image, and vision_feature_select_strategy '{strategy}' drops it: no "
            "visual token is left.",
            code="config-inconsistent",
        )
    return spec


def _feature_states(feature_layer: int | list[int], layers: int) -> tuple[int, ...]:
    indices = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    if not all(type(i) is int for i in indices):
        raise UserError(
            "config.json: vision_feature_layer is a list of something else than numbers.",
            code="config-value-invalid",
        )
    states = [i if i >= 0 else layers + 1 + i for i in indices]
    if not 0 < len(states) <= 64 or any(not 0 <= i <= layers for i in states):
        raise UserError(
            f"config.json: vision_feature_layer is {str(feature_layer)[:80]}, but the vision tower has {layers} layers "
            f"(valid: {-layers - 1} to {layers}).",
            code="config-value-invalid",
        )
    return tuple(states)


def _drops_first(strategy: str) -> bool:
    if strategy not in ("default", "full"):
        raise UserError(
            f"config.json: vision_feature_select_strategy is '{strategy}', supported are 'default' and 'full'.",
            code="config-unsupported",
        )
    return strategy == "default"
