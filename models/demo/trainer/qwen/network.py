"""The same model as `Qwen3VLForConditionalGeneration`, written for training on a CPU.

Parameter names and arithmetic are the stock model's (a test compares the two). Images of a batch are of one size, and
a training step may skip visual tokens with all their patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from divprune_edge.manifest import Patches
from divprune_edge.processing.patches import AXES, PLACE_ROWS, PLACE_WEIGHTS, grid_inputs

from ...render import PATCH
from ..network import LanguageModel, start_matrices, waves
from .checkpoint import MERGE, TEMPORAL, TEXT, VISION

EPS = 1e-6


@dataclass(frozen=True)
class Grid:
    """An image of `down` by `across` visual tokens: each patch's row and column, and learned position's places."""

    down: int
    across: int
    axes: Tensor
    place_rows: Tensor
    place_weights: Tensor


@lru_cache(maxsize=64)
def grid_of(down: int, across: int, places: int) -> Grid:
    """The grid of so many visual tokens, laid over `places` by `places` learned positions."""
    facts = Patches(
        patch=PATCH, merge=MERGE, temporal=TEMPORAL, min_pixels=1, max_pixels=1 << 20, places=places
    )
    found = grid_inputs((down * MERGE, across * MERGE), facts)
    return Grid(down, across, *(torch.from_numpy(found[name]) for name in (AXES, PLACE_ROWS, PLACE_WEIGHTS)))


class Attention(nn.Module):
    """Every patch sees every other; heads are turned by row and column."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """[batch, n, hidden] to the same."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(_turn(q, rope), _turn(k, rope), v)
        return self.proj(out.transpose(1, 2).flatten(2))


def _turn(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * rope[0] + torch.cat([-second, first], -1) * rope[1]


class MLP(nn.Module):
    """Two layers with the approximate GELU."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[…, hidden] to the same."""
        return self.linear_fc2(functional.gelu(self.linear_fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A pre-norm layer."""

    def __init__(self, hidden: int, intermediate: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden, EPS), nn.LayerNorm(hidden, EPS)
        self.attn, self.mlp = Attention(hidden, heads), MLP(hidden, intermediate)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """[batch, n, hidden] to the same."""
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """The patches of a visual token to the language model's width; normalised each, or together if `late`."""

    def __init__(self, hidden: int, width: int, *, late: bool) -> None:
        super().__init__()
        self.late, self.merged = late, hidden * MERGE**2
        self.norm = nn.LayerNorm(self.merged if late else hidden, EPS)
        self.linear_fc1, self.linear_fc2 = nn.Linear(self.merged, self.merged), nn.Linear(self.merged, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n, hidden] to [batch, n / 4, width]."""
        x = x if self.late else self.norm(x)
        x = x.reshape(len(x), -1, self.merged)
        return self.linear_fc2(functional.gelu(self.linear_fc1(self.norm(x) if self.late else x)))


class VisionTower(nn.Module):
    """The tower and its mergers."""

    def __init__(self, config: dict[str, Any] = VISION) -> None:
        super().__init__()
        hidden, heads = config["hidden_size"], config["num_heads"]
        self.deepstack, self.head_dim = tuple(config["deepstack_visual_indexes"]), hidden // heads
        self.places = int(config["num_position_embeddings"] ** 0.5)
        self.patch_embed = nn.Module()
        kernel = TEMPORAL, PATCH, PATCH
        self.patch_embed.proj = nn.Conv3d(3, hidden, kernel, kernel)
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], hidden)
        with torch.no_grad():
            self.pos_embed.weight.copy_(0.5 * waves(self.places, hidden))
        self.blocks = nn.ModuleList(
            Block(hidden, config["intermediate_size"], heads) for _ in range(config["depth"])
        )
        self.merger = Merger(hidden, config["out_hidden_size"], late=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(hidden, config["out_hidden_size"], late=True) for _ in self.deepstack
        )

        # Equal queries and keys look at what is near and alike: a good place to start from.
        for block in self.blocks[:2]:
            with torch.no_grad():
                block.attn.qkv.weight[:hidden].copy_(nn.init.orthogonal_(torch.empty(hidden, hidden)))
                block.attn.qkv.weight[hidden : 2 * hidden].copy_(block.attn.qkv.weight[:hidden])

    def look(self, patches: Tensor, grid: Grid, index: Tensor | None = None) -> list[Tensor]:
        """Features [batch, n, hidden] of the last layer, and of those for DeepStack, before they are merged.

        `patches` are normalised, [batch, n, 96]; `index` int64 [batch, n] says which of the grid's they are, None: all.
        """
        x = functional.linear(patches, self.patch_embed.proj.weight.flatten(1), self.patch_embed.proj.bias)
        places = (self.pos_embed(grid.place_rows) * grid.place_weights[..., None]).sum(1)
        axes = grid.axes
        if index is not None:
            places, axes = places[index], axes[index]
        half = self.head_dim // 2
        frequency = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
        angle = (axes.float()[..., None] * frequency).flatten(-2)
        angle = torch.cat([angle, angle], -1)
        angle = angle[:, None] if angle.ndim == 3 else angle
        rope = angle.cos(), angle.sin()
        x, beside = x + places, []
        for number, block in enumerate(self.blocks):
            x = block(x, rope)
            if number in self.deepstack:
                beside.append(x)
        return [x, *beside]

    def merge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Visual tokens [batch, n / 4, width] of what `look` returned, and what is beside them."""
        mergers = (self.merger, *self.deepstack_merger_list)
        return [merger(x) for merger, x in zip(mergers, features, strict=True)]


class DemoQwen(nn.Module):
    """The whole model; `state_dict()` has the names of `Qwen3VLForConditionalGeneration`."""

    def __init__(self, vision: dict[str, Any] = VISION, text: dict[str, Any] = TEXT) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.visual = VisionTower(vision)
        self.model.language_model = LanguageModel(text, qk_norm=True)
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        start_matrices(self, "visual.blocks", text["num_hidden_layers"])
        with torch.no_grad():
            for merger in self.model.visual.deepstack_merger_list:
                merger.linear_fc2.weight *= 0.2
