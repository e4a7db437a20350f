"""Many questions behind one picture: a pack costs the picture once and never lets answers leak.

A pack is the shared prefix (`<s> user : <picture>`) and separate conversations of one to three
turns. A conversation sees the prefix and itself, and sits at the positions it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..questions import Asker, Question
from ..scenes import Scene
from .tokenizer import BOS, EOS, PAD, build_tokenizer, vocabulary

TRAINING_MIX = {
    "color": 1,
    "shape": 1,
    "count": 3,
    "exist": 2,
    "where": 1,
    "at": 1,
    "size": 3,
    "bigger": 11,
    "relation": 3,
    "digits": 1,
}
"""Questions asked for per picture and type; what is harder to learn is asked more often."""

_IDS = vocabulary()
HEAD = (BOS, _IDS["user"], _IDS[":"])
"""What stands before the picture."""


@dataclass(frozen=True)
class Form:
    """How a checkpoint writes a conversation: token ids around questions and answers.

    `user` comes before every question but the first, `assistant` after each; an answer ends with `end`.
    """

    encode: Callable[[str], tuple[int, ...]]
    user: tuple[int, ...]
    assistant: tuple[int, ...]
    end: int
    pad: int


@dataclass(frozen=True)
class Batch:
    """Packs side by side, text padded to one length T.

    `ids`, `offsets`, `group` int64 [batch, T]: token, position after the picture, conversation (-1:
    padding). Answer tokens are listed flat: `rows`, `columns` of the position that predicts them,
    their `labels`, and the index into `questions` they belong to (`asked`).
    """

    ids: Tensor
    offsets: Tensor
    group: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    asked: Tensor
    questions: tuple[Question, ...]

    def mask(self, prefix: int) -> Tensor:
        """bool [batch, 1, T, prefix + T]: the prefix, and earlier tokens of the same conversation."""
        size = self.ids.shape[1]
        same = self.group[:, :, None] == self.group[:, None, :]
        same &= torch.ones(size, size, dtype=torch.bool).tril()
        return torch.cat([torch.ones(len(same), size, prefix, dtype=torch.bool), same], 2)[:, None]


def encoder(build: Callable[[], Any]) -> Callable[[str], tuple[int, ...]]:
    """What makes token ids of a piece of text, without `<s>`; the tokenizer is built when it is needed."""
    tokenizer = lru_cache(maxsize=1)(build)

    @lru_cache(maxsize=100_000)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer().encode(text, add_special_tokens=False).ids)

    return encode


LLAVA = Form(
    encoder(build_tokenizer), (_IDS["user"], _IDS[":"]), (_IDS["assistant"], _IDS[":"]), end=EOS, pad=PAD
)


def ask_for_training(
    scenes: Sequence[Scene], rng: np.random.Generator, mix: Mapping[str, int] = TRAINING_MIX
) -> list[list[list[Question]]]:
    """Conversations (lists of questions) per scene, as many of each type as `mix` says."""
    asker = Asker(rng)
    packs = []
    for scene in scenes:
        asked = [asker.ask(scene, kind) for kind, number in mix.items() for _ in range(number)]
        packs.append(conversations([question for question in asked if question is not None], rng))
    return packs


def conversations(questions: Sequence[Question], rng: np.random.Generator) -> list[list[Question]]:
    """Questions in any order, one to three a conversation."""
    order, start, found = rng.permutation(len(questions)), 0, []
    while start < len(questions):
        turns = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        found.append([questions[i] for i in order[start : start + turns]])
        start += turns
    return found


def build_batch(
    packs: Sequence[Sequence[Sequence[Question]]], rng: np.random.Generator | None = None, form: Form = LLAVA
) -> Batch:
    """Tokenise packs of conversations; with `rng`, the closing mark is left out now and then."""
    columns: list[list[tuple[int, int, int]]] = []  # per pack: id, offset, conversation
    targets: list[tuple[int, int, int, int]] = []
    questions: list[Question] = []
    for row, pack in enumerate(packs):
        line: list[tuple[int, int, int]] = []
        for number, conversation in enumerate(pack):
            offset = 0
            for turn, question in enumerate(conversation):
                text = question.text
                if rng is not None and rng.random() < 0.15:
                    text = text.rstrip("?.")
                opening = (form.user if turn else ()) + form.encode(text) + form.assistant
                answer = (*form.encode(question.answer), form.end)
                for place, label in enumerate(answer):
                    targets.append((row, len(line) + len(opening) - 1 + place, label, len(questions)))
                for token in opening + answer:
                    line.append((token, offset, number))
                    offset += 1
                questions.append(question)
        columns.append(line)
    size = max(len(line) for line in columns)
    cells = torch.tensor([line + [(form.pad, 0, -1)] * (size - len(line)) for line in columns])
    flat = torch.tensor(targets)
    return Batch(
        cells[..., 0],
        cells[..., 1],
        cells[..., 2],
        flat[:, 0],
        flat[:, 1],
        flat[:, 2],
        flat[:, 3],
        tuple(questions),
    )


def positions(visual: int, budgets: Tensor, batch: Batch) -> Tensor:
    """Positions [batch, prefix + T] as if `budgets` [batch] tokens had been kept of `visual`.

    All visual tokens stay; only their positions are squeezed, so that no text position that a
    budget can produce is news to the model.
    """
    head = torch.arange(len(HEAD)).expand(len(budgets), -1)
    seen = len(HEAD) + torch.arange(visual)[None] * budgets[:, None] // visual
    text = len(HEAD) + budgets[:, None] + batch.offsets
    return torch.cat([head, seen, text], 1)
