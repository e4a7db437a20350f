"""The same model as `LlavaForConditionalGeneration`, written for training on a CPU.

Parameter names and arithmetic are the stock model's (a test compares the two). What differs is
what is left out: the vision layer that feature layer -2 never reads, the vision positions that the
last language layer's successors never read, and patches that a training step chose to skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint import TEXT, VISION


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Multi-head attention on [batch, length, hidden] projections; `mask` bool [batch, 1, queries, keys]."""

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    out = functional.scaled_dot_product_attention(
        split(q), split(k), split(v), attn_mask=mask, is_causal=causal
    )
    return out.transpose(1, 2).flatten(2)


def joint(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several projections of one input in a single matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    return tuple(functional.linear(x, weight, bias).split([layer.out_features for layer in layers], -1))


class VisionAttention(nn.Module):
    """Every position sees every other."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] to the same."""
        q, k, v = joint(x, self.q_proj, self.k_proj, self.v_proj)
        return self.out_proj(attend(q, k, v, self.heads))


class VisionMLP(nn.Module):
    """Two layers with CLIP's quick_gelu."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[…, hidden] to the same."""
        # quick_gelu(x) = x * sigmoid(1.702 x) = silu(1.702 x) / 1.702, and silu is one fused kernel.
        scaled = functional.linear(x, self.fc1.weight * 1.702, self.fc1.bias * 1.702)
        return functional.linear(functional.silu(scaled), self.fc2.weight / 1.702, self.fc2.bias)


class VisionLayer(nn.Module):
    """A pre-norm layer of CLIP."""

    def __init__(self, hidden: int, intermediate: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self_attn = VisionAttention(hidden, heads)
        self.layer_norm1 = nn.LayerNorm(hidden, eps)
        self.mlp = VisionMLP(hidden, intermediate)
        self.layer_norm2 = nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, hidden] to the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def waves(side: int, hidden: int) -> Tensor:
    """Sines and cosines of row and column, [side * side, hidden]: where position embeddings start."""
    frequency = 2 * torch.pi / torch.logspace(0.7, 1.8, hidden // 4)
    angle = torch.arange(side, dtype=torch.float32)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    down, across = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([down, across], 2).reshape(side * side, hidden)


class VisionTower(nn.Module):
    """CLIP tower up to feature layer -2: one layer fewer than the config says."""

    def __init__(self, config: dict[str, int] = VISION) -> None:
        super().__init__()
        hidden, self.patch = config["hidden_size"], config["patch_size"]
        patches = (config["image_size"] // self.patch) ** 2
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.randn(hidden) * 0.02)
        self.embeddings.patch_embedding = nn.Conv2d(3, hidden, self.patch, self.patch, bias=False)
        self.embeddings.position_embedding = nn.Embedding(patches + 1, hidden)
        with torch.no_grad():
            start = 0.5 * waves(config["image_size"] // self.patch, hidden)
            self.embeddings.position_embedding.weight.zero_()[1:] = start
        self.pre_layrnorm = nn.LayerNorm(hidden, config["layer_norm_eps"])
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            VisionLayer(
                hidden, config["intermediate_size"], config["num_attention_heads"], config["layer_norm_eps"]
            )
            for _ in range(config["num_hidden_layers"] - 1)
        )

        # Equal queries and keys look at what is near and alike: a good place to start from.
        for layer in self.encoder.layers[:2]:
            attention = layer.self_attn
            nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.load_state_dict(attention.q_proj.state_dict())

    def forward(self, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Features [batch, n, hidden] of normalised patches [batch, n, 3 * patch * patch].

        `index` int64 [batch, n] says which patches these are; None: all, in raster order.
        """
        weight = self.embeddings.patch_embedding.weight.flatten(1)
        table = self.embeddings.position_embedding.weight
        place = table[1:] if index is None else table[1:][index]
        x = functional.linear(patches, weight) + place
        first = (self.embeddings.class_embedding + table[0]).expand(len(x), 1, -1)
        x = self.pre_layrnorm(torch.cat([first, x], 1))
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class Projector(nn.Module):
    """Vision features to the language model's width."""

    def __init__(self, vision: int, text: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(vision, text), nn.Linear(text, text)

    def forward(self, x: Tensor) -> Tensor:
        """[…, vision] to […, text]."""
        return self.linear_2(functional.gelu(self.linear_1(x)))


class TextAttention(nn.Module):
    """Rotary attention over a shared prefix and what a mask allows; with `eps`, heads are normalised before."""

    def __init__(self, hidden: int, heads: int, eps: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden, hidden, bias=False) for _ in range(4)
        )
        self.q_norm, self.k_norm = (
            nn.Identity() if eps is None else nn.RMSNorm(hidden // heads, eps) for _ in range(2)
        )

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], prefix: int, mask: Tensor, text_only: bool
    ) -> Tensor:
        """Positions before `prefix` are plainly causal; the text after it sees them and what `mask` allows."""
        q, k, v = joint(x, self.q_proj, self.k_proj, self.v_proj)
        q, k = rotate(q, rope, self.heads, self.q_norm), rotate(k, rope, self.heads, self.k_norm)
        text = attend(q[:, prefix:], k, v, self.heads, mask=mask)
        if text_only:
            return self.o_proj(text)
        seen = attend(q[:, :prefix], k[:, :prefix], v[:, :prefix], self.heads, causal=True)
        return self.o_proj(torch.cat([seen, text], 1))


class TextMLP(nn.Module):
    """Llama's gated layer."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(hidden, intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[…, hidden] to the same."""
        gate, up = joint(x, self.gate_proj, self.up_proj)
        return self.down_proj(functional.silu(gate) * up)


class TextLayer(nn.Module):
    """A pre-norm layer of Llama."""

    def __init__(self, hidden: int, intermediate: int, heads: int, eps: float, qk_norm: bool) -> None:
        super().__init__()
        self.self_attn = TextAttention(hidden, heads, eps if qk_norm else None)
        self.mlp = TextMLP(hidden, intermediate)
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], prefix: int, mask: Tensor, text_only: bool
    ) -> Tensor:
        """[batch, length, hidden] to the same, or to the text alone with `text_only`."""
        seen = self.self_attn(self.input_layernorm(x), rope, prefix, mask, text_only)
        x = (x[:, prefix:] if text_only else x) + seen
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Llama on a shared prefix (start, picture) followed by many separate pieces of text."""

    def __init__(self, config: dict[str, Any] = TEXT, *, qk_norm: bool = False) -> None:
        super().__init__()
        hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["rms_norm_eps"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
        self.layers = nn.ModuleList(
            TextLayer(hidden, config["intermediate_size"], heads, eps, qk_norm)
            for _ in range(config["num_hidden_layers"])
        )
        self.norm = nn.RMSNorm(hidden, eps)
        self.head_dim = hidden // heads

    def forward(
        self, x: Tensor, positions: Tensor, prefix: int, mask: Tensor, beside: Sequence[Tensor] = ()
    ) -> Tensor:
        """Final states of the text, [batch, length - prefix, hidden].

        `x` [batch, length, hidden]; `positions` [batch, length], may repeat or be fractional, or
        [batch, length, 3] for time, height and width, which take the angles in turn (interleaved M-RoPE);
        `mask` bool [batch, 1, length - prefix, length]; `beside` [batch, prefix, hidden] each, added after the
        first layers.
        """
        frequency = 10000.0 ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        each = positions.float()[..., None]
        if positions.ndim == 3:
            each = positions.float()[..., torch.arange(self.head_dim // 2) % 3]
        angle = each * frequency
        rope = (angle.cos().repeat(1, 1, 2)[:, :, None], angle.sin().repeat(1, 1, 2)[:, :, None])
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, rope, prefix, mask, number == len(self.layers))
            if number <= len(beside):
                x = torch.cat([x[:, :prefix] + beside[number - 1], x[:, prefix:]], 1)
        return self.norm(x)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor], heads: int, norm: nn.Module) -> Tensor:
    """Rotary position embedding of [batch, length, hidden], halves of each head, once normalised, paired."""
    cos, sin = rope
    split = norm(x.view(*x.shape[:2], heads, -1))
    first, second = split.chunk(2, -1)
    return (split * cos + torch.cat([-second, first], -1) * sin).flatten(2)


class DemoLlava(nn.Module):
    """The whole model; `state_dict()` has the names of `LlavaForConditionalGeneration`."""

    def __init__(self, vision: dict[str, int] = VISION, text: dict[str, int] = TEXT) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower = VisionTower(vision)
        self.model.multi_modal_projector = Projector(vision["hidden_size"], text["hidden_size"])
        self.model.language_model = LanguageModel(text)
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        start_matrices(self, "vision_tower", text["num_hidden_layers"])


def start_matrices(model: nn.Module, tower: str, layers: int) -> None:
    """Draw the matrices outside the tower: those that close one of the language model's layers are small."""
    depth = (2 * layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and tower not in name:
            std = 0.3 if "embed" in name else parameter.shape[1] ** -0.5
            closing = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=std * (depth if closing else 1.0))
