"""Questions about two images and clips are true of what is drawn."""

from __future__ import annotations

import numpy as np

from divprune_edge.models.demo.questions import Asker
from divprune_edge.models.demo.render import render
from divprune_edge.models.demo.scenes import MAX_OBJECTS, Scene, Split, sample_scene, scene_rng
from divprune_edge.models.demo.several import DIRECTIONS, NEAREST, DrawnClip, ask_clip, ask_pair, sample_clip


def scenes(count: int) -> list[Scene]:
    return [sample_scene(scene_rng(Split.HELD_OUT, 5, i)) for i in range(count)]


def clips(count: int) -> list[DrawnClip]:
    found = [sample_clip(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes(count))]
    return [clip for clip in found if clip is not None]


def test_one_shape_moves_the_way_that_is_said_and_all_else_stays() -> None:
    assert len(clips(40)) > 30
    assert {clip.direction for clip in clips(40)} == set(DIRECTIONS)
    for clip in clips(40):
        first, last = clip.frames(4)[0], clip.frames(4)[-1]
        across, down = DIRECTIONS[clip.direction]
        for number, (a, b) in enumerate(zip(first.objects, last.objects, strict=True)):
            moved = (b.x - a.x) * across + (b.y - a.y) * down
            assert moved >= NEAREST - 1e-9 if number == clip.thing else a == b
        assert (render(first, 96) != render(last, 96)).any()


def test_what_moves_and_where_to() -> None:
    for clip in clips(20):
        rng = np.random.default_rng(0)
        asked = {q.type: q for q in ask_clip(clip, Asker(rng), rng)}
        thing = clip.scene.objects[clip.thing]
        assert asked["moves"].answer == f"{thing.color} {thing.shape}"
        if "motion" in asked:
            assert asked["motion"].answer == clip.direction
            assert thing.shape in asked["motion"].text or thing.color in asked["motion"].text


def test_a_question_about_two_images_says_which_one_it_is_about() -> None:
    rng, told = np.random.default_rng(3), 0
    drawn = scenes(40)
    for pair in zip(drawn[::2], drawn[1::2], strict=True):
        first, second = (len(scene.objects) for scene in pair)
        for question in ask_pair(pair, Asker(rng), rng, ["count", "color", "shape"]):
            if question.type == "more":
                assert question.answer == ("first" if first > second else "second")
                told += 1
            else:
                assert question.text.startswith(("In the first picture, ", "In the second picture, "))
            if question.form == "count-all":
                assert question.answer == str(first if "first" in question.text else second)
                assert 2 <= int(question.answer) <= MAX_OBJECTS
        assert first != second or not any(q.type == "more" for q in ask_pair(pair, Asker(rng), rng, []))
    assert told > 10
