"""What the Python API says to arguments that it cannot take: its own error, one sentence, the argument's name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import divprune_edge
from divprune_edge import Pipeline, UserError, UserTypeError, Video


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline(demo_bundle, threads=1)


TYPES: dict[str, tuple[Callable[[Pipeline, Any], object], str]] = {
    "question": (lambda p, i: p.ask(i, 5), "question is 5 of type int, expected a text."),
    "question of a chat": (lambda p, i: p.chat(i).ask(None), "question is None of type NoneType"),
    "max_tokens": (
        lambda p, i: p.ask(i, "?", max_tokens=2.5),
        "max_tokens is 2.5 of type float, expected a whole",
    ),
    "on_progress": (
        lambda p, i: Pipeline(p.bundle, on_progress=True),
        "on_progress is True of type bool, expected a function",
    ),
    "on_frame": (lambda p, i: Video("clip", on_frame=1), "on_frame is 1 of type int, expected a function"),
    "bool": (lambda p, i: p.ask(i, "?", max_tokens=True), "max_tokens is True of type bool"),
    "temperature": (lambda p, i: p.ask(i, "?", temperature="hot"), "temperature is 'hot' of type str"),
    "top_p": (lambda p, i: p.ask(i, "?", top_p=None), "top_p is None of type NoneType, expected a number."),
    "seed": (
        lambda p, i: p.ask(i, "?", seed=1.0),
        "seed is 1.0 of type float, expected a whole number or None.",
    ),
    "ignore_eos": (
        lambda p, i: p.ask(i, "?", ignore_eos="no"),
        "ignore_eos is 'no' of type str, expected True",
    ),
    "stop": (lambda p, i: p.ask(i, "?", stop=5), "stop is 5 of type int, expected a tuple of texts."),
    "stop of numbers": (lambda p, i: p.ask(i, "?", stop=(5,)), "stop is (5,) of type tuple"),
    "unknown": (
        lambda p, i: p.ask(i, "?", max_token=5),
        "no argument 'max_token' (did you mean 'max_tokens'?)",
    ),
    "unknown of a chat": (
        lambda p, i: p.chat(i).ask("?", beams=5),
        "no argument 'beams': known are max_tokens, ",
    ),
    "unknown of a batch": (lambda p, i: p.ask_batch([(i, "?")], beams=5), "no argument 'beams'"),
    "stream": (lambda p, i: p.ask(i, "?", stream="yes"), "stream is 'yes' of type str, expected a function"),
    "bgr": (lambda p, i: p.ask(i, "?", bgr=1), "bgr is 1 of type int, expected True or False."),
    "image": (lambda p, i: p.ask(5, "?"), "An image is a path, a Pillow image or a uint8 array, not a int."),
    "image in an image": (lambda p, i: p.ask([i, [i]], "?"), "not a list."),
    "nothing in a list": (lambda p, i: p.ask([None], "?"), "not a NoneType."),
    "image that joins": (lambda p, i: p.chat(i).ask("?", image=5), "a uint8 array, not a int."),
    "bgr that joins": (lambda p, i: p.chat(i).ask("?", bgr="no"), "bgr is 'no' of type str"),
    "image bytes": (lambda p, i: p.ask(b"\x89PNG", "?"), "not a bytes."),
    "batch": (lambda p, i: p.ask_batch(5), "questions is 5 of type int, expected a list of pairs"),
    "batch of a text": (lambda p, i: p.ask_batch("what?"), "questions is 'what?' of type str"),
    "batch of texts": (lambda p, i: p.ask_batch(["what?"]), "Question 1 of the batch is 'what?' of type str"),
    "batch of numbers": (
        lambda p, i: p.ask_batch([(i, "a"), (i, 5)]),
        "The question of pair 2 is 5 of type int",
    ),
    "batch of bad images": (
        lambda p, i: p.ask_batch([(i, "a"), (5, "b")]),
        "Question 2 of the batch: An image is",
    ),
    "selector": (lambda p, i: p.with_selector(58), "selector is 58 of type int, expected a text or None."),
    "keep": (
        lambda p, i: p.with_selector(keep="58"),
        "keep is '58' of type str, expected a whole number or None.",
    ),
    "bundle": (lambda p, i: Pipeline(5), "bundle is 5 of type int, expected a path."),
    "backend": (lambda p, i: Pipeline(p.bundle, backend=None), "backend is None of type NoneType"),
    "threads": (lambda p, i: Pipeline(p.bundle, threads=1.5), "threads is 1.5 of type float"),
}

VALUES: dict[str, tuple[Callable[[Pipeline, Any], object], str]] = {
    "max_tokens": (lambda p, i: p.ask(i, "?", max_tokens=-1), "max_tokens is -1, expected at least 1."),
    "temperature": (lambda p, i: p.ask(i, "?", temperature=float("nan")), "temperature is nan"),
    "keep": (lambda p, i: p.with_selector(keep=-3), "-3 visual tokens are to be kept, expected 1 to 576."),
    "threads": (lambda p, i: Pipeline(p.bundle, threads=-1), "-1 threads were asked for"),
    "array": (
        lambda p, i: p.ask(np.zeros((4, 4, 3)), "?"),
        "float64 array of shape [4, 4, 3], expected uint8",
    ),
    "several images in an array": (
        lambda p, i: p.ask(np.zeros((2, 4, 4, 3), np.uint8), "?"),
        "shape [2, 4, 4, 3], expected uint8 of shape",
    ),
    "empty array": (lambda p, i: p.ask(np.zeros((0, 4, 3), np.uint8), "?"), "shape [0, 4, 3], expected"),
    "backend": (lambda p, i: Pipeline(p.bundle, backend="tpu"), "no backend 'tpu'"),
    "image": (lambda p, i: p.ask("nowhere.png", "?"), "There is no image at 'nowhere.png'"),
}


@pytest.mark.parametrize("case", TYPES)
def test_another_type(pipeline: Pipeline, image: Path, case: str) -> None:
    call, said = TYPES[case]
    with pytest.raises(TypeError) as caught:
        call(pipeline, image)
    assert isinstance(caught.value, UserTypeError)
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", VALUES)
def test_another_value(pipeline: Pipeline, image: Path, case: str) -> None:
    call, said = VALUES[case]
    with pytest.raises(UserError) as caught:
        call(pipeline, image)
    assert not isinstance(caught.value, TypeError)
    assert said in str(caught.value)


def test_numbers_of_numpy_are_numbers(pipeline: Pipeline, image: Path) -> None:
    answer = pipeline.ask(image, "?", max_tokens=np.int64(2), temperature=np.float32(0), stop=["x"])
    assert len(answer.token_ids) <= 2


def test_a_wrong_option_is_told_before_the_image_is_read(pipeline: Pipeline) -> None:
    with pytest.raises(UserTypeError, match="max_tokens"):
        pipeline.ask("nowhere.png", "?", max_tokens="many")


def test_it_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(UserTypeError("x is 5.", code="argument-type")))
    assert (type(error), str(error), error.code) == (UserTypeError, "x is 5.", "argument-type")


def test_the_public_names() -> None:
    for name in divprune_edge.__all__:
        assert getattr(divprune_edge, name) is not None
