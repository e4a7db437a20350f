"""Pruning inside a decoder, eagerly: transformers' own layers, tokens removed between them, papers' scores in PyTorch.

Written from the formulas, apart from the references in ``models/schedules``, which are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, pad
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.cache_utils import DynamicCache

Tensor = torch.Tensor


def tiny_decoder(kind: str, layers: int = 8, seed: int = 0, **settings: Any) -> Any:
    """A random Llama or Qwen2 with grouped heads and weights large enough for attention to have an opinion."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=256,
        initializer_range=0.25,
        **settings,
    )
    config._attn_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@dataclass(frozen=True)
class Layer:
    """What one layer did to n rows: probabilities [heads, n, n], and rows [n, D] into and out of its two branches."""

    probabilities: Tensor
    before: Tensor
    after: Tensor
    attention: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]


@dataclass
class Stream:
    """Where the visual and the text rows are among those that are left, and what a method remembers of the visual.

    ``images`` says of which image each of the visual rows is.
    """

    visual: Tensor
    text: Tensor
    images: Tensor
    layers: list[Layer] = field(default_factory=list)
    memory: Tensor | None = None

    def remember(self, more: Tensor) -> None:
        self.memory = more if self.memory is None else self.memory + more


Look = Callable[[], Tensor]
"""The next layer's probabilities over the rows before the cut."""
Watch = Callable[[Stream, Layer, int], None]
Score = Callable[[Stream, Look], Tensor]


@dataclass(frozen=True)
class Eager:
    """A method: what it does after every layer, and its score at a cut."""

    score: Score
    watch: Watch = lambda stream, layer, index: None


@dataclass(frozen=True)
class Pruned:
    """Of a prefill and what was decoded behind it.

    ``kept`` are places in the prompt of the visual rows left after each cut, ``margins`` how much larger than the
    second the logit of each of ``tokens`` was, ``lengths`` the rows of each layer's cache.
    """

    kept: list[list[int]]
    logits: Tensor
    tokens: list[int]
    margins: list[float]
    lengths: list[int]


def open_text_model(folder: Path) -> Any:
    """A checkpoint's decoder and output head, as :func:`run` takes them."""
    torch.set_num_threads(1)
    whole = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return SimpleNamespace(model=whole.model.language_model, lm_head=whole.lm_head)


def embed(model: Any, ids: Sequence[int], table: Any) -> tuple[Tensor, list[Tensor]]:
    """Rows [n, D] of ids of the token table, and what is stacked behind them, for the first layers."""
    embedding = model.model.embed_tokens.weight.detach()
    width = embedding.shape[1]
    whole = torch.cat([pad(embedding, (0, table.shape[1] - width)), torch.tensor(table, dtype=torch.float32)])
    rows, *stacked = whole[torch.tensor(list(ids))].split(width, dim=1)
    return rows, stacked


@torch.no_grad()
def run(
    model: Any,
    embeddings: Tensor,
    images: Sequence[Sequence[int]],
    cuts: Sequence[tuple[int, int]],
    method: Eager | None,
    *,
    renumber: bool,
    steps: int = 0,
    forbidden: Sequence[int] = (),
    stacked: Sequence[Tensor] = (),
    positions: Any = None,
    next_position: int | None = None,
    kept: Sequence[Sequence[int]] | None = None,
) -> Pruned:
    """Prefill [n, D], leaving ``keep`` rows of each image before each layer of ``cuts`` (layer, keep); decode greedily.

    ``stacked`` is added behind the first layers; ``positions`` are [n] or [3, n], ``next_position`` that of what comes
    behind them. With ``kept``, what another run kept, nothing is judged; with no method, rows at equal distances stay.
    """
    decoder, cache, at = model.model, DynamicCache(), dict(cuts)
    n = len(embeddings)
    places, owner = torch.arange(n), torch.full((n,), -1)
    for number, image in enumerate(images):
        owner[torch.as_tensor(image)] = number
    positions = places if positions is None else torch.as_tensor(positions)
    stream = Stream((owner >= 0).nonzero()[:, 0], (owner < 0).nonzero()[:, 0], owner[owner >= 0])
    x, left = embeddings, []
    for index, layer in enumerate(decoder.layers):
        if index in at:
            if kept is None:
                look = partial(_probabilities, decoder, layer, x, positions)
                best = _best(
                    stream, [owner == number for number in range(len(images))], at[index], method, look
                )
            else:
                best = torch.isin(places[stream.visual], torch.as_tensor(kept[len(left)])).nonzero()[:, 0]
            rows = torch.cat([stream.text, stream.visual[best]]).sort().values
            x, places, owner = x[rows], places[rows], owner[rows]
            positions = (
                torch.arange(len(rows)).expand_as(positions[..., rows]) if renumber else positions[..., rows]
            )
            stream.visual, stream.text = (owner >= 0).nonzero()[:, 0], (owner < 0).nonzero()[:, 0]
            stream.images = owner[owner >= 0]
            stream.memory = None if stream.memory is None else stream.memory[best]
            left.append(places[stream.visual].tolist())
        found = run_layer(decoder, layer, x, positions, cache)
        stream.layers.append(found)
        if method is not None:
            method.watch(stream, found, index)
        x = found.after + stacked[index] if index < len(stacked) else found.after
    logits, tokens, margins = [_logits(model, x)], [], []
    for step in range(steps):
        allowed = logits[-1].clone()
        allowed[list(forbidden)] = -torch.inf
        top = torch.topk(allowed, 2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        x = decoder.embed_tokens(top.indices[:1])
        for index, layer in enumerate(decoder.layers):
            place = (n if next_position is None else next_position) + step
            if renumber and index >= min(at, default=len(decoder.layers)):
                place = cache.get_seq_length(index)
            x = run_layer(decoder, layer, x, torch.full_like(positions[..., :1], place), cache).after
        logits.append(_logits(model, x))
    lengths = [cache.get_seq_length(i) for i in range(len(decoder.layers))]
    return Pruned(left, torch.stack(logits), tokens, margins, lengths)


def _best(stream: Stream, images: Sequence[Tensor], keep: int, method: Eager | None, look: Look) -> Tensor:
    """Which of the visual rows stay, by their number among them; each image, a mask of rows, is judged by itself."""
    numbers = [image[stream.visual].nonzero()[:, 0] for image in images]
    score = None
    if method is not None and keep and any(len(own) > keep for own in numbers):
        score = method.score(stream, look)
    stay = []
    for own in numbers:
        if len(own) <= keep:
            stay.append(own)
        elif score is None:
            stay.append(own[[i * len(own) // keep for i in range(keep)]])
        else:
            stay.append(own[torch.sort(score[own], descending=True, stable=True).indices[:keep]])
    return torch.cat(stay).sort().values


def _probabilities(decoder: Any, layer: Any, x: Tensor, positions: Tensor) -> Tensor:
    return run_layer(decoder, layer, x, positions).probabilities


def _logits(model: Any, x: Tensor) -> Tensor:
    return model.lm_head(model.model.norm(x[-1]))


def run_layer(decoder: Any, layer: Any, x: Tensor, positions: Tensor, cache: Any = None) -> Layer:
    """Run a layer on rows [n, D] behind those of the cache."""
    n = len(x)
    past = cache.get_seq_length(layer.self_attn.layer_idx) if cache is not None else 0
    mask = torch.full((n, past + n), -torch.inf).triu(past + 1)
    angles = decoder.rotary_emb(x[None], positions[..., None, :])
    normed = layer.input_layernorm(x[None])
    attended, probabilities = layer.self_attn(
        hidden_states=normed,
        position_embeddings=angles,
        attention_mask=mask[None, None],
        past_key_values=cache,
    )
    middle = x[None] + attended
    read = layer.post_attention_layernorm(middle)
    wrote = layer.mlp(read)
    after = (middle + wrote)[0]
    return Layer(probabilities[0], x, after, (normed[0], attended[0]), (read[0], wrote[0]))


# The methods.


def _fastv(stream: Stream, look: Look) -> Tensor:
    return stream.layers[-1].probabilities.mean(0)[-1, stream.visual]


def _pyramiddrop(stream: Stream, look: Look) -> Tensor:
    return look().mean(0)[-1, stream.visual]


def _v2drop(stream: Stream, look: Look) -> Tensor:
    last = stream.layers[-1]
    return (last.after - last.before).norm(dim=-1)[stream.visual]


def _question(stream: Stream) -> Tensor:
    """Text rows behind the last visual one."""
    return stream.text[stream.text > stream.visual.max()]


def _ttv(first: int, last: int) -> Watch:
    def watch(stream: Stream, layer: Layer, index: int) -> None:
        if not first <= index <= last:
            return
        for read, wrote in (layer.attention, layer.mlp):
            turn = torch.softmax(1 - cosine_similarity(read, wrote, dim=-1), dim=0)
            stream.remember((wrote.norm(dim=-1) / read.norm(dim=-1) * turn)[stream.visual])

    return watch


def _transprune(stream: Stream, look: Look) -> Tensor:
    asked = look().mean(0)[_question(stream)][:, stream.visual].mean(0)
    assert stream.memory is not None
    return _share(asked, stream.images) + _share(stream.memory, stream.images)


def _share(values: Tensor, images: Tensor) -> Tensor:
    """Values as shares of the sum over their image."""
    return values / (torch.stack([values[images == image].sum() for image in images]) + 1e-8)


def _aim(stream: Stream, look: Look) -> Tensor:
    sharp = torch.softmax(stream.layers[-1].probabilities.log() / 0.1, dim=-1)
    heads, n, _ = sharp.shape
    rank = torch.full((heads, 1, n), 1 / n)
    for _ in range(5):
        rank = rank @ sharp
    return rank[:, 0].square().mean(0).sqrt()[stream.visual]


def _sparsevlm(stream: Stream, look: Look) -> Tensor:
    last, question = stream.layers[-1], _question(stream)
    share = torch.softmax(last.before[stream.visual] @ last.before[question].T, dim=1).mean(0)
    raters = question[share > share.mean()]
    return last.probabilities.mean(0)[raters][:, stream.visual].mean(0)


def _catp(stream: Stream, look: Look) -> Tensor:
    entering = stream.layers[-1].after
    grown = look().mean(0)[-1] - stream.layers[-1].probabilities.mean(0)[-1]
    likeness = cosine_similarity(entering, entering[_question(stream)].mean(0, keepdim=True), dim=-1)
    return (grown.clamp(min=0) + 0.6 * likeness)[stream.visual]


def _vla(stream: Stream, look: Look) -> Tensor:
    return stream.layers[-1].probabilities.mean(0).mean(0)[stream.visual]


def _received(stream: Stream, layer: Layer, index: int) -> None:
    stream.remember(layer.probabilities.sum((0, 1))[stream.visual])


def _memory(stream: Stream, look: Look) -> Tensor:
    assert stream.memory is not None
    return stream.memory


def _fitprune(stream: Stream, look: Look) -> Tensor:
    strongest = stream.layers[-1].probabilities.max(0).values
    itself = strongest[stream.visual][:, stream.visual].mean(0)
    return itself * strongest[_question(stream)][:, stream.visual].sum(0)


EAGER = {
    "fastv": Eager(_fastv),
    "pyramiddrop": Eager(_pyramiddrop),
    "v2drop": Eager(_v2drop),
    "aim": Eager(_aim),
    "sparsevlm": Eager(_sparsevlm),
    "lazyllm": Eager(_fastv),
    "catp": Eager(_catp),
    "vla-pruner": Eager(_vla),
    "spatten": Eager(_memory, _received),
    "fitprune": Eager(_fitprune),
}
"""Those that need nothing but the model; ``transprune``'s layers follow its cuts: :func:`eager_transprune`."""


def eager_transprune(first: int, last: int) -> Eager:
    """TransPrune, whose transitions are summed from layer ``first`` to ``last``."""
    return Eager(_transprune, _ttv(first, last))
