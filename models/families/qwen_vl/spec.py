"""What the ``vision_config`` of Qwen2.5-VL (Bai et al. 2025, 2502.13923) or Qwen3-VL (2511.21631) says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from divprune_edge.errors import UserError
from divprune_edge.models.activations import activation
from divprune_edge.models.files import Config, Shapes, count, setting
from divprune_edge.models.towers.vit import check_tower

TOWER = "visual"
"""The encoder's only part, as graphs and transformers name it: the tower, and the merger on top of it."""
MERGER, DEEPSTACK_MERGERS = "merger", "deepstack_merger_list"
"""The merger that makes the visual tokens, and those of what is beside them."""
NORM_EPS = 1e-6
"""Of every norm; no config has a say in it."""

_LARGEST_WINDOW = 64


@dataclass(frozen=True)
class QwenVisionSpec:
    """Sizes of a tower for images of any size, and its kind's switches.

    Attributes:
        patch: pixels of a patch a side.
        merge: patches a side that become one visual token.
        temporal: frames of a patch, all the same in an image.
        theta: base of the rotary embedding, half of whose angles are of a patch's row and half of its column.
        rms_norm: whether norms are RMS norms, without a bias.
        gated: whether the MLP is ``down(act(gate(x)) * up(x))``, not two linear layers.
        patch_bias: whether the patch embedding has a bias.
        positions: rows of a table of learned positions, the square grid that images' grids are laid over; None: none.
        window: visual tokens a side of the windows that attention stays in, but for the layers in ``full``; None: all
            layers see all patches.
        deepstack: layers whose output is merged, too, by a merger of its own, and given beside the visual tokens.
        tokens_per_second: positions that a second of a clip takes; None: a clip's times are written between its frames.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    merge: int
    temporal: int
    out_hidden: int
    activation: str
    theta: float = 10000.0
    rms_norm: bool = False
    gated: bool = False
    patch_bias: bool = True
    positions: int | None = None
    window: int | None = None
    full: tuple[int, ...] = ()
    deepstack: tuple[int, ...] = ()
    tokens_per_second: float | None = None

    @property
    def width(self) -> int:
        """D: width of a visual token."""
        return self.out_hidden

    @property
    def beside(self) -> tuple[str, ...]:
        """What the encoder gives beside the visual tokens, one after another for the first layers of the decoder."""
        return tuple(f"deepstack.{i}" for i in range(len(self.deepstack)))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def factor(self) -> int:
        """Pixels of a visual token a side: images are resized to multiples of it."""
        return self.patch * self.merge

    @property
    def merged(self) -> int:
        """Width of the patches of one visual token, side by side."""
        return self.hidden * self.merge**2

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels, frames, rows, columns."""
        return 3 * self.temporal * self.patch**2

    @property
    def side(self) -> int | None:
        """Places a side of the grid of learned positions."""
        return None if self.positions is None else math.isqrt(self.positions)

    @property
    def window_patches(self) -> int | None:
        """Patches of a whole window."""
        return None if self.window is None else (self.window * self.merge) ** 2

    def in_windows(self, layer: int) -> bool:
        """Whether attention of that layer stays in windows."""
        return self.window is not None and layer not in self.full

    def flops(self, patches: int) -> int:
        """Return the FLOPs of the tower for an image of so many patches, without mergers.

        ``2 (n h 3Tp² + Σ (4 n h² + 2 n s h + k n h m))``: s patches are seen by each, all or a whole window; k is 3 for
        a gated MLP and 2 for a plain one.
        """
        n, h = patches, self.hidden
        layers = self.layers * (4 * n * h * h + (3 if self.gated else 2) * n * h * self.intermediate)
        seen = sum(
            min(n, self.window_patches) if self.window_patches and self.in_windows(i) else n
            for i in range(self.layers)
        )
        return 2 * (n * h * self.patch_values + layers + 2 * n * seen * h)

    def merger_flops(self, patches: int) -> int:
        """Return the FLOPs of all mergers for an image of so many patches."""
        tokens = patches // self.merge**2
        return 2 * (1 + len(self.deepstack)) * tokens * self.merged * (self.merged + self.out_hidden)

    def parameters(self) -> Shapes:
        """Return name -> shape of every weight that the graph needs, relative to the tower."""
        h, m = self.hidden, self.intermediate
        shapes: Shapes = {"patch_embed.proj.weight": (h, 3, self.temporal, self.patch, self.patch)}
        if self.patch_bias:
            shapes["patch_embed.proj.bias"] = (h,)
        if self.positions is not None:
            shapes["pos_embed.weight"] = (self.positions, h)
        for i in range(self.layers):
            block = f"blocks.{i}."
            shapes |= self._norm(f"{block}norm1", h) | self._norm(f"{block}norm2", h)
            shapes |= _linear(f"{block}attn.qkv", h, 3 * h) | _linear(f"{block}attn.proj", h, h)
            if self.gated:
                for name, inputs, outputs in (("gate", h, m), ("up", h, m), ("down", m, h)):
                    shapes |= _linear(f"{block}mlp.{name}_proj", inputs, outputs)
            else:
                shapes |= _linear(f"{block}mlp.linear_fc1", h, m) | _linear(f"{block}mlp.linear_fc2", m, h)
        for merger in (MERGER, *(f"{DEEPSTACK_MERGERS}.{i}" for i in range(len(self.deepstack)))):
            norm, first, second = self.merger_layers(merger)
            shapes |= self._norm(norm, h if merger == MERGER else self.merged)
            shapes |= _linear(first, self.merged, self.merged) | _linear(second, self.merged, self.out_hidden)
        return shapes

    def merger_layers(self, merger: str) -> tuple[str, str, str]:
        """Return the names of a merger's norm and linear layers."""
        names = ("ln_q", "mlp.0", "mlp.2") if self.rms_norm else ("norm", "linear_fc1", "linear_fc2")
        norm, first, second = (f"{merger}.{name}" for name in names)
        return norm, first, second

    def _norm(self, name: str, width: int) -> Shapes:
        shapes: Shapes = {f"{name}.weight": (width,)}
        return shapes if self.rms_norm else shapes | {f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


# What transformers' config classes assume where a checkpoint says nothing.
_QWEN3 = QwenVisionSpec(
    hidden=1152,
    intermediate=4304,
    layers=27,
    heads=16,
    patch=16,
    merge=2,
    temporal=2,
    out_hidden=3584,
    activation="gelu_pytorch_tanh",
    positions=2304,
    deepstack=(8, 16, 24),
)
_QWEN2_5 = QwenVisionSpec(
    hidden=3584,
    intermediate=3420,
    layers=32,
    heads=16,
    patch=14,
    merge=2,
    temporal=2,
    out_hidden=3584,
    activation="silu",
    rms_norm=True,
    gated=True,
    patch_bias=False,
    window=4,
    full=(7, 15, 23, 31),
    tokens_per_second=4,
)
# Checkpoints from before transformers 4.52 call their towers what they call themselves.
_KINDS = {
    "qwen3_vl_vision": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen2_5_vl_vision": _QWEN2_5,
    "qwen2_5_vl": _QWEN2_5,
}


def read_qwen_vision(config: Config, default: str) -> QwenVisionSpec:
    """Return the spec of a ``vision_config``; absent fields take the defaults of transformers' config class.

    Args:
        config: the vision part of a family's config.
        default: the family's kind of tower where the config names none, as ``qwen3_vl``.

    Raises:
        UserError: another kind of tower, settings that are not supported, or sizes that do not fit each other.
    """
    kind = setting(config, "model_type", default, str)
    if kind not in _KINDS:
        raise UserError(
            f"The vision tower is a '{kind}', supported are {' and '.join(map(repr, _KINDS))}.",
            code="model-unsupported",
        )
    usual = _KINDS[kind]
    depth = count(config, "depth", usual.layers, 1000)
    spec = replace(
        usual,
        hidden=count(config, "hidden_size", usual.hidden),
        intermediate=count(config, "intermediate_size", usual.intermediate),
        layers=depth,
        heads=count(config, "num_heads", usual.heads),
        patch=count(config, "patch_size", usual.patch, 64),
        merge=count(config, "spatial_merge_size", usual.merge, 8),
        temporal=count(config, "temporal_patch_size", usual.temporal, 4),
        out_hidden=count(config, "out_hidden_size", usual.out_hidden),
        activation=activation(setting(config, "hidden_act", usual.activation, str), "vision hidden_act"),
        theta=_theta(config),
        deepstack=_layers(config, "deepstack_visual_indexes", usual.deepstack, depth),
    )
    if usual.positions is not None:
        positions = count(config, "num_position_embeddings", usual.positions, 1 << 20)
        spec = replace(spec, positions=positions)
    if usual.tokens_per_second is not None:
        per_second = setting(config, "tokens_per_second", usual.tokens_per_second, float)
        spec = replace(spec, tokens_per_second=per_second)
    if usual.window is not None:
        spec = _with_windows(spec, config, usual)
    check_tower(config, "in_channels", spec.hidden, spec.heads)
    if spec.head_dim % 4:
        raise UserError(
            f"The vision tower's heads are {spec.head_dim} values wide, which are not pairs of angles for rows and as "
            "many for columns: a multiple of 4 is expected.",
            code="config-inconsistent",
        )
    return spec


def _with_windows(spec: QwenVisionSpec, config: Config, usual: QwenVisionSpec) -> QwenVisionSpec:
    """Return the spec with its windows, which are in pixels in a config; none where no layer has them."""
    full = _layers(config, "fullatt_block_indexes", usual.full, spec.layers)
    if len(full) == spec.layers:
        return replace(spec, window=None, full=())
    pixels = count(config, "window_size", 112)
    window = pixels // spec.merge // spec.patch
    if not 1 <= window <= _LARGEST_WINDOW:
        raise UserError(
            f"config.json: window_size is {pixels}, expected 1 to {_LARGEST_WINDOW} times the {spec.factor} pixels of "
            "a visual token.",
            code="config-inconsistent",
        )
    return replace(spec, window=window, full=full)


def _layers(config: Config, name: str, default: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return layers in ascending order; those that the tower does not have count for nothing, as in transformers."""
    if not default:
        return ()
    said: list[object] = setting(config, name, list(default), list)
    found = [one for one in said if isinstance(one, int) and not isinstance(one, bool) and one >= 0]
    if len(found) != len(said) or found != sorted(set(found)):
        raise UserError(
            f"config.json: {name} is {str(said)[:80]}, expected numbers of layers in ascending order.",
            code="config-unsupported",
        )
    return tuple(layer for layer in found if layer < depth)


def _theta(config: Config) -> float:
    """Return the base of the rotary embedding, which must be of rows and columns and nothing else."""
    parameters = setting(config, "rope_scaling", {}, dict) or setting(config, "rope_parameters", {}, dict)
    kind = parameters.get("rope_type", parameters.get("type", "axial"))
    if kind not in ("axial", "default"):
        raise UserError(
            f"config.json: the vision tower's rotary embedding is '{kind}', supported is 'axial'.",
            code="config-unsupported",
        )
    theta = setting(parameters, "rope_theta", setting(config, "rope_theta", 10000.0, float), float)
    if not theta > 0:
        raise UserError(
            f"config.json: rope_theta is {theta}, expected more than 0.", code="config-value-invalid"
        )
    return float(theta)
