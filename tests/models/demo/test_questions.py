"""Every question is answered again here from its text alone, by other code than the one that asked."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np

from divprune_edge.models.demo.held_out import HELD_OUT_PICTURES, chance, held_out
from divprune_edge.models.demo.questions import REGIONS, TYPES, Question
from divprune_edge.models.demo.scenes import COLORS, SHAPES, Object, Scene, Split, sample_scene, scene_rng
from divprune_edge.models.demo.trainer.packs import ask_for_training

SINGULAR = {
    "circles": "circle",
    "squares": "square",
    "triangles": "triangle",
    "stars": "star",
    "crosses": "cross",
}


def matching(scene: Scene, phrase: str) -> list[Object]:
    """Objects that a phrase such as 'red circle', 'stars' or 'white shape' can mean."""
    words = [SINGULAR.get(word, word) for word in phrase.split()]
    return [
        thing
        for thing in scene.objects
        if all(
            word in (thing.color, thing.shape) or word in ("shape", "shapes", "one", "thing")
            for word in words
        )
    ]


def the(scene: Scene, phrase: str) -> Object:
    found = matching(scene, phrase)
    assert len(found) == 1, f"'the {phrase}' could be {len(found)} things"
    return found[0]


def truth(scene: Scene, question: Question) -> str:
    text = question.text.rstrip("?.")
    if question.type == "color":
        return the(scene, next(w for w in text.split() if w in SHAPES)).color
    if question.type == "shape":
        return the(scene, next(w for w in text.split() if w in COLORS)).shape
    if question.type == "count":
        phrase = re.sub(r"^(How many|Count the) | (are|do) .*$|\?", "", text)
        return str(len(matching(scene, phrase)))
    if question.type == "exist":
        phrase = re.search(r"\ba (.*?)( in the picture)?$", text)
        assert phrase
        phrase_text = phrase[1]
        return "yes" if matching(scene, phrase_text) else "no"
    if question.type == "where":
        thing = the(scene, re.split(r"(?:is|see) the ", text)[-1])
        return REGIONS[int(thing.y * 3) * 3 + int(thing.x * 3)]
    if question.type == "at":
        region = REGIONS.index(re.split(r"(?:at|in) the ", text)[-1])
        inside = [o for o in scene.objects if int(o.y * 3) * 3 + int(o.x * 3) == region]
        assert len(inside) == 1
        return f"{inside[0].color} {inside[0].shape}"
    if question.type == "digits":
        assert scene.sign is not None
        return scene.sign.digits
    if question.type == "size":
        return "yes" if the(scene, re.split(r"Is the | big", text)[1]).radius > 0.12 else "no"
    choice = re.match(r"Is the (.+?) (?:to the )?(\w+) or (\w+) (?:than |of )?the (.+)", text)
    if choice:
        a, b = the(scene, choice[1]), the(scene, choice[4])
        apart = {"left": b.x - a.x, "above": b.y - a.y, "bigger": a.radius - b.radius}[choice[2]]
        return choice[2] if apart > 0 else choice[3]
    words = "bigger|larger|smaller|left|right|above|below|under"
    found = re.match(rf"Is the (.+?) (?:to the )?({words}) (?:than |of )?the (.+)", text)
    assert found, text
    a, word, b = the(scene, found[1]), found[2], the(scene, found[3])
    holds = {
        "bigger": a.radius >= 1.4 * b.radius,
        "larger": a.radius >= 1.4 * b.radius,
        "smaller": b.radius >= 1.4 * a.radius,
        "left": a.x <= b.x - 0.15,
        "right": a.x >= b.x + 0.15,
        "above": a.y <= b.y - 0.15,
        "below": a.y >= b.y + 0.15,
        "under": a.y >= b.y + 0.15,
    }
    return "yes" if holds[word] else "no"


def test_held_out_answers_are_true() -> None:
    data = held_out(250)
    for scene, questions in zip(data.scenes, data.questions, strict=True):
        for question in questions:
            assert truth(scene, question) == question.answer, question


def test_training_answers_are_true() -> None:
    scenes = [sample_scene(scene_rng(Split.TRAIN, 3, index)) for index in range(25)]
    for scene, pack in zip(scenes, ask_for_training(scenes, np.random.default_rng(0)), strict=True):
        for conversation in pack:
            for question in conversation:
                assert truth(scene, question) == question.answer, question


def test_held_out_set_is_fixed_and_balanced() -> None:
    data = held_out()
    assert len(data.scenes) == HELD_OUT_PICTURES >= 500
    asked = [question for questions in data.questions for question in questions]
    assert len(asked) > 4000
    by_form: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked:
        by_form[question.form][question.answer] += 1
    for form, answers in by_form.items():
        if form != "digits":
            assert max(answers.values()) - min(answers.values()) <= 4, form
    for kind in TYPES:
        of_kind = [q for q in asked if q.type == kind]
        assert len(of_kind) >= 300
        most = max(Counter(q.answer for q in of_kind).values()) / len(of_kind)
        assert most <= chance(of_kind) + 0.1
    assert held_out(5).questions == data.questions[:5]
