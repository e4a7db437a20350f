"""Pruning inside a decoder, eagerly: transformers' own layers, tokens removed between them, papers' scores in PyTorch.

Written from the formulas, apart from the references in ``models/schedules``, which are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM
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
    """Where the visual and the text rows are among those that are left, and what a method remembers of the visual."""

    visual: Tensor
    text: Tensor
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
    """Of a prefill: int64 places in the prompt of the visual rows left after each cut, and the last row's logits."""

    kept: list[list[int]]
    logits: Tensor
    tokens: list[int]
    lengths: list[int]


def run(
    model: Any,
    embeddings: Tensor,
    visual: Sequence[int],
    cuts: Sequence[tuple[int, int]],
    method: Eager,
    *,
    renumber: bool,
    steps: int = 0,
    forbidden: Sequence[int] = (),
) -> Pruned:
    """Prefill [n, D], leaving ``keep`` visual rows before each layer of ``cuts`` (layer, keep); decode greedily."""
    with torch.no_grad():
        decoder, cache, at = model.model, DynamicCache(), dict(cuts)
        n = len(embeddings)
        places = torch.arange(n)
        positions = places.clone()
        is_visual = torch.zeros(n, dtype=torch.bool)
        is_visual[list(visual)] = True
        stream = Stream(is_visual.nonzero()[:, 0], (~is_visual).nonzero()[:, 0])
        x, kept = embeddings, []
        for index, layer in enumerate(decoder.layers):
            if index in at:
                score = method.score(
                    stream, lambda x=x, p=positions, m=layer: run_layer(decoder, m, x, p).probabilities
                )
                best = torch.sort(score, descending=True, stable=True).indices[: at[index]].sort().values
                rows = torch.cat([stream.text, stream.visual[best]]).sort().values
                x, places, is_visual = x[rows], places[rows], is_visual[rows]
                positions = torch.arange(len(rows)) if renumber else positions[rows]
                stream.visual, stream.text = is_visual.nonzero()[:, 0], (~is_visual).nonzero()[:, 0]
                stream.memory = None if stream.memory is None else stream.memory[best]
                kept.append(places[is_visual].tolist())
            found = run_layer(decoder, layer, x, positions, cache)
            stream.layers.append(found)
            method.watch(stream, found, index)
            x = found.after
        logits, tokens = [_logits(model, x)], []
        for step in range(steps):
            allowed = logits[-1].clone()
            allowed[list(forbidden)] = -torch.inf
            tokens.append(int(allowed.argmax()))
            x = decoder.embed_tokens(torch.tensor(tokens[-1:]))
            for layer in decoder.layers:
                seen = cache.get_seq_length(layer.self_attn.layer_idx)
                x = run_layer(decoder, layer, x, torch.tensor([seen if renumber else n + step]), cache).after
            logits.append(_logits(model, x))
        lengths = [cache.get_seq_length(i) for i in range(len(decoder.layers))]
    return Pruned(kept, torch.stack(logits), tokens, lengths)


def _logits(model: Any, x: Tensor) -> Tensor:
    return model.lm_head(model.model.norm(x[-1]))


def run_layer(decoder: Any, layer: Any, x: Tensor, positions: Tensor, cache: Any = None) -> Layer:
    """Run a layer on rows [n, D] behind those of the cache."""
    n = len(x)
    past = cache.get_seq_length(layer.self_attn.layer_idx) if cache is not None else 0
    mask = torch.full((n, past + n), -torch.inf).triu(past + 1)
    angles = decoder.rotary_emb(x[None], positions[None])
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
    return asked / (asked.sum() + 1e-8) + stream.memory / (stream.memory.sum() + 1e-8)


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
