"""The questions that measure the checkpoint: fixed by a seed, never trained on, sized beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .questions import ANSWERS, TYPES, Asker, Question
from .scenes import Scene, Split, sample_scene, scene_rng

HELD_OUT_PICTURES = 800
HELD_OUT_SEED = 2026
DEVELOPMENT_SEED = 2027
"""Of other scenes and questions, which settings may be chosen by: training has seed 0 of another family."""
GRID_PICTURES = 120
"""The first pictures of the set, for the dense grid of budgets."""


@dataclass(frozen=True)
class HeldOut:
    """Scenes and, per scene, at most one question of each type."""

    scenes: tuple[Scene, ...]
    questions: tuple[tuple[Question, ...], ...]


def held_out(pictures: int = HELD_OUT_PICTURES, seed: int = HELD_OUT_SEED) -> HeldOut:
    """The question set: answers are balanced per form by the scenes alone."""
    scenes = tuple(sample_scene(scene_rng(Split.HELD_OUT, seed, index)) for index in range(pictures))
    asker = Asker(np.random.default_rng((Split.HELD_OUT.value, seed)))
    questions = []
    for scene in scenes:
        asked = (asker.ask(scene, kind) for kind in TYPES)
        questions.append(tuple(question for question in asked if question is not None))
    return HeldOut(scenes, tuple(questions))


def chance(questions: list[Question]) -> float:
    """Expected accuracy of guessing evenly among the answers that each question's form admits."""
    odds = [1 / len(ANSWERS[q.form]) if ANSWERS[q.form] else _number_odds(q.answer) for q in questions]
    return sum(odds) / len(odds)


def _number_odds(digits: str) -> float:
    """A number has two or three digits, equally often."""
    return 0.5 * 0.1 ** len(digits)
