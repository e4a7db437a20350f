"""The language model: one pre-norm decoder with RoPE and gated MLP covers Llama, Mistral, Qwen2 and Qwen-VL's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from divprune_edge.errors import UserError
from divprune_edge.models.activations import activation
from divprune_edge.models.files import Config, Shapes, count, layers, setting
from divprune_edge.models.rope import RopeSpec, read_rope


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and switches of a decoder. ``vocabulary`` is what the config says; weights may have more rows."""

    kind: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_eps: float
    activation: str
    rope: RopeSpec
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()

    def window(self, layer: int) -> int | None:
        """Return how many positions, its own included, a token of that layer sees; None: all before it."""
        return self.windows[layer] if self.windows else None

    @property
    def only_window(self) -> int | None:
        """The window that all layers share; None where they have none, or not the same."""
        found = {self.window(layer) for layer in range(self.layers)}
        return found.pop() if len(found) == 1 else None

    def truncated(self, layers: int) -> DecoderSpec:
        """Return the first ``layers`` layers."""
        return replace(self, layers=layers, windows=self.windows[:layers])

    def within(self, positions: int) -> DecoderSpec:
        """Return what the decoder is for sequences of at most so many positions: windows that these reach stay."""
        windows = tuple(size if size is not None and size < positions else None for size in self.windows)
        return replace(self, windows=windows if any(windows) else ())

    def parameters(self, rows: int) -> Shapes:
        """Return name -> shape of every weight, relative to the decoder, with ``rows`` embedding rows."""
        h, m = self.hidden, self.intermediate
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: Shapes = {"embed_tokens.weight": (rows, h), "norm.weight": (h,)}
        for i in range(self.layers):
            layer = f"layers.{i}."
            shapes |= {
                f"{layer}input_layernorm.weight": (h,),
                f"{layer}post_attention_layernorm.weight": (h,),
            }
            for name, out, inner, bias in (
                ("self_attn.q_proj", q, h, self.qkv_bias),
                ("self_attn.k_proj", kv, h, self.qkv_bias),
                ("self_attn.v_proj", kv, h, self.qkv_bias),
                ("self_attn.o_proj", h, q, self.output_bias),
                ("mlp.gate_proj", m, h, self.mlp_bias),
                ("mlp.up_proj", m, h, self.mlp_bias),
                ("mlp.down_proj", h, m, self.mlp_bias),
            ):
                shapes[f"{layer}{name}.weight"] = (out, inner)
                if bias:
                    shapes[f"{layer}{name}.bias"] = (out,)
            if self.qk_norm:
                shapes |= {f"{layer}self_attn.{part}_norm.weight": (self.head_dim,) for part in "qk"}
        return shapes


@dataclass(frozen=True)
class _Kind:
    """What transformers' classes have of their own, and assume where a checkpoint says nothing.

    Attributes:
        switches: fields of its config that give linear layers biases.
        qkv_bias: its attention has biases whatever the config says.
        qk_norm: its queries and keys are normed.
        window_from: the first layer with a sliding window; None where none has one.
        window_asked: only where ``use_sliding_window`` says so, and other layers may be named.
    """

    vocabulary: int
    intermediate: int
    kv_heads: int | None
    context: int
    theta: float = 10000.0
    head_dim: int | None = None
    eps: float = 1e-6
    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    mrope: RopeSpec | None = None
    switches: tuple[str, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    window_from: int | None = None
    window_asked: bool = True


_KINDS = {
    "llama": _Kind(
        vocabulary=32000,
        intermediate=11008,
        kv_heads=None,
        context=2048,
        switches=("attention_bias", "mlp_bias"),
    ),
    "mistral": _Kind(
        vocabulary=32000,
        intermediate=14336,
        kv_heads=8,
        context=4096 * 32,
        window_from=0,
        window_asked=False,
    ),
    "qwen2": _Kind(
        vocabulary=151936,
        intermediate=22016,
        kv_heads=32,
        context=32768,
        qkv_bias=True,
        window_from=28,
    ),
    "qwen2_5_vl_text": _Kind(
        vocabulary=152064,
        intermediate=29568,
        kv_heads=8,
        context=32768,
        theta=1e6,
        eps=1e-5,
        hidden=8192,
        layers=80,
        heads=64,
        mrope=RopeSpec(1e6, sections=(16, 24, 24)),
        qkv_bias=True,
        window_from=80,
    ),
    "qwen3_vl_text": _Kind(
        vocabulary=151936,
        intermediate=22016,
        kv_heads=32,
        context=128000,
        theta=5e5,
        head_dim=128,
        mrope=RopeSpec(5e5, sections=(24, 20, 20), interleaved=True),
        switches=("attention_bias",),
        qk_norm=True,
    ),
}


def read_decoder(config: Config) -> DecoderSpec:
    """Return the spec of a ``text_config``; absent fields take the defaults of transformers' config class.

    Raises:
        UserError: another architecture, or sizes that do not fit each other.
    """
    name = setting(config, "model_type", "llama", str)
    if name not in _KINDS:
        raise UserError(
            f"The language model is a '{name}', supported are {', '.join(_KINDS)}.",
            code="model-unsupported",
        )
    kind = _KINDS[name]
    hidden = count(config, "hidden_size", kind.hidden)
    heads = count(config, "num_attention_heads", kind.heads)
    context = count(config, "max_position_embeddings", kind.context, 1 << 24)
    spec = DecoderSpec(
        kind=name,
        hidden=hidden,
        intermediate=count(config, "intermediate_size", kind.intermediate),
        layers=layers(config, kind.layers),
        heads=heads,
        kv_heads=_kv_heads(config, kind, heads),
        head_dim=count(config, "head_dim", kind.head_dim or hidden // heads),
        vocabulary=count(config, "vocab_size", kind.vocabulary),
        context=context,
        norm_eps=setting(config, "rms_norm_eps", kind.eps, float),
        activation=activation(setting(config, "hidden_act", "silu", str), "text hidden_act"),
        rope=read_rope(config, kind.theta, kind.mrope),
        qkv_bias=kind.qkv_bias or _switch(config, kind, "attention_bias"),
        output_bias=_switch(config, kind, "attention_bias"),
        mlp_bias=_switch(config, kind, "mlp_bias"),
        qk_norm=kind.qk_norm,
        windows=_windows(config, kind),
    )
    if spec.heads % spec.kv_heads:
        raise UserError(
            f"config.json: {spec.heads} heads do not divide by {spec.kv_heads} key-value heads.",
            code="config-inconsistent",
        )
    if spec.rope.sections and sum(spec.rope.sections) != spec.head_dim // 2:
        raise UserError(
            f"config.json: mrope_section {list(spec.rope.sections)} does not share out the {spec.head_dim // 2} angles "
            f"of head_dim {spec.head_dim}.",
            code="config-inconsistent",
        )
    if spec.head_dim % 2:
        raise UserError(
            f"config.json: head_dim {spec.head_dim} is odd, rotary embedding needs an even one.",
            code="config-inconsistent",
        )
    return spec


def _kv_heads(config: Config, kind: _Kind, heads: int) -> int:
    """An explicit null means one key-value head per head; an absent field means the class default."""
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        return heads
    return count(config, "num_key_value_heads", kind.kv_heads or heads)


def _switch(config: Config, kind: _Kind, name: str) -> bool:
    return name in kind.switches and bool(setting(config, name, False, bool))


def _windows(config: Config, kind: _Kind) -> tuple[int | None, ...]:
    """Return the sliding window of each layer, as transformers' config classes read it."""
    depth = layers(config, kind.layers)
    if kind.window_from is None or config.get("sliding_window", 4096) is None:
        return ()
    size: int = count(config, "sliding_window", 4096)
    first: int = kind.window_from
    if kind.window_asked:
        if not setting(config, "use_sliding_window", False, bool):
            return ()
        kinds: list[object] = setting(config, "layer_types", [], list)
        if kinds:
            return tuple(size if one == "sliding_attention" else None for one in kinds)
        first = setting(config, "max_window_layers", first, int)
    return (None,) * max(min(first, depth), 0) + (size,) * max(depth - max(first, 0), 0)
