"""The picture and the clip that the demo asks about: `python -m divprune_edge.models.demo.trainer.picture` writes them.

The first scene of its own random stream that has a sign, at least four shapes and a question of
each of three types; and the first one of another stream with as many shapes, one of which has room to move. They are
chosen by what they show, not by what a model says about them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .. import CLIP, CLIP_FACTS, IMAGE, IMAGE_FACTS
from ..questions import Asker, Question
from ..render import render
from ..scenes import Scene, Split, sample_scene, scene_rng
from ..several import DrawnClip, ask_clip, sample_clip

SIDE = 384
SEED = 0
ASKED = ("color", "relation", "digits")
CLIP_SIDE, CLIP_SEED, FRAMES = 192, 1, 4
ASKED_OF_CLIP = ("motion", "moves", "count")


def demo_scene() -> tuple[Scene, list[Question]]:
    """The demo scene and its three questions."""
    for index in itertools.count():
        scene = sample_scene(scene_rng(Split.DEMO, SEED, index))
        if scene.sign is None or len(scene.objects) < 4:
            continue
        asker = Asker(np.random.default_rng(index))
        questions = [question for kind in ASKED if (question := asker.ask(scene, kind)) is not None]
        if len(questions) == len(ASKED):
            return scene, questions
    raise AssertionError("unreachable")


def demo_clip() -> tuple[DrawnClip, list[Question]]:
    """The demo clip and its three questions."""
    for index in itertools.count():
        scene, rng = sample_scene(scene_rng(Split.DEMO, CLIP_SEED, index)), np.random.default_rng(index)
        clip = sample_clip(scene, rng) if len(scene.objects) >= 4 else None
        if clip is None:
            continue
        questions = {question.type: question for question in ask_clip(clip, Asker(rng), rng)}
        if questions.keys() >= set(ASKED_OF_CLIP):
            return clip, [questions[kind] for kind in ASKED_OF_CLIP]
    raise AssertionError("unreachable")


def main() -> None:
    """Write picture and clip, and the facts of each."""
    scene, questions = demo_scene()
    Image.fromarray(render(scene, SIDE)).save(IMAGE, optimize=True)
    _write_facts(IMAGE_FACTS, IMAGE.name, questions)
    clip, questions = demo_clip()
    CLIP.mkdir(exist_ok=True)
    for number, frame in enumerate(clip.frames(FRAMES)):
        Image.fromarray(render(frame, CLIP_SIDE)).save(CLIP / f"{number}.png", optimize=True)
    _write_facts(CLIP_FACTS, CLIP.name, questions)


def _write_facts(path: Path, media: str, questions: list[Question]) -> None:
    facts = {
        "image": media,
        "questions": [{"type": q.type, "question": q.text, "answer": q.answer} for q in questions],
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
