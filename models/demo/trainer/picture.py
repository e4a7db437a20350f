"""The picture that the demo asks about: `python -m divprune_edge.models.demo.trainer.picture` writes it.

The first scene of its own random stream that has a sign, at least four shapes and a question of
each of three types: chosen by what it shows, not by what a model says about it.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
from PIL import Image

from .. import PICTURE, PICTURE_FACTS
from ..questions import Asker, Question
from ..render import render
from ..scenes import Scene, Split, sample_scene, scene_rng

SIDE = 384
SEED = 0
ASKED = ("color", "relation", "digits")


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


def main() -> None:
    """Write the picture and its facts."""
    scene, questions = demo_scene()
    Image.fromarray(render(scene, SIDE)).save(PICTURE, optimize=True)
    facts = {
        "image": PICTURE.name,
        "questions": [{"type": q.type, "question": q.text, "answer": q.answer} for q in questions],
    }
    PICTURE_FACTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
