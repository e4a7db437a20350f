"""What the Python API says to arguments that it cannot take: its own error, one sentence, the argument's name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raising import refused

import divprune_edge
from divprune_edge import Pipeline, UserTypeError, Video


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return Pipeline(demo_bundle, threads=1)


Case = tuple[Callable[[Pipeline, Any], object], str, str]
"""A call, the code of its mistake, and what the sentence names."""

TYPES: dict[str, Case] = {
    "question": (lambda p, i: p.ask(i, 5), "argument-type", "question is 5 of type int"),
    "question of a chat": (lambda p, i: p.chat(i).ask(None), "argument-type", "question is None"),
    "max_tokens": (
        lambda p, i: p.ask(i, "?", max_tokens=2.5),
        "argument-type",
        "max_tokens is 2.5 of type float",
    ),
    "on_progress": (
        lambda p, i: Pipeline(p.bundle, on_progress=True),
        "argument-type",
        "on_progress is True",
    ),
    "on_frame": (lambda p, i: Video("clip", on_frame=1), "argument-type", "on_frame is 1"),
    "bool": (lambda p, i: p.ask(i, "?", max_tokens=True), "argument-type", "max_tokens is True of type bool"),
    "temperature": (lambda p, i: p.ask(i, "?", temperature="hot"), "argument-type", "temperature is 'hot'"),
    "top_p": (lambda p, i: p.ask(i, "?", top_p=None), "argument-type", "top_p is None"),
    "seed": (lambda p, i: p.ask(i, "?", seed=1.0), "argument-type", "seed is 1.0 of type float"),
    "ignore_eos": (lambda p, i: p.ask(i, "?", ignore_eos="no"), "argument-type", "ignore_eos is 'no'"),
    "stop": (lambda p, i: p.ask(i, "?", stop=5), "argument-type", "stop is 5 of type int"),
    "stop of numbers": (lambda p, i: p.ask(i, "?", stop=(5,)), "argument-type", "stop is (5,) of type tuple"),
    "unknown": (lambda p, i: p.ask(i, "?", max_token=5), "argument-unknown", "did you mean 'max_tokens'"),
    "unknown of a chat": (lambda p, i: p.chat(i).ask("?", beams=5), "argument-unknown", "'beams'"),
    "unknown of a batch": (lambda p, i: p.ask_batch([(i, "?")], beams=5), "argument-unknown", "'beams'"),
    "stream": (lambda p, i: p.ask(i, "?", stream="yes"), "argument-type", "stream is 'yes'"),
    "bgr": (lambda p, i: p.ask(i, "?", bgr=1), "argument-type", "bgr is 1 of type int"),
    "image": (lambda p, i: p.ask(5, "?"), "image-type-unsupported", "int"),
    "image in an image": (lambda p, i: p.ask([i, [i]], "?"), "image-type-unsupported", "list"),
    "nothing in a list": (lambda p, i: p.ask([None], "?"), "image-type-unsupported", "NoneType"),
    "image that joins": (lambda p, i: p.chat(i).ask("?", image=5), "image-type-unsupported", "int"),
    "bgr that joins": (lambda p, i: p.chat(i).ask("?", bgr="no"), "argument-type", "bgr is 'no' of type str"),
    "image bytes": (lambda p, i: p.ask(b"\x89PNG", "?"), "image-type-unsupported", "bytes"),
    "batch": (lambda p, i: p.ask_batch(5), "argument-type", "questions is 5 of type int"),
    "batch of a text": (
        lambda p, i: p.ask_batch("what?"),
        "argument-type",
        "questions is 'what?' of type str",
    ),
    "batch of texts": (
        lambda p, i: p.ask_batch(["what?"]),
        "argument-type",
        "Question 1 of the batch is 'what?'",
    ),
    "batch of numbers": (
        lambda p, i: p.ask_batch([(i, "a"), (i, 5)]),
        "argument-type",
        "pair 2 is 5 of type int",
    ),
    "batch of bad images": (
        lambda p, i: p.ask_batch([(i, "a"), (5, "b")]),
        "image-type-unsupported",
        "Question 2 of the batch",
    ),
    "selector": (lambda p, i: p.with_selector(58), "argument-type", "selector is 58 of type int"),
    "keep": (lambda p, i: p.with_selector(keep="58"), "argument-type", "keep is '58' of type str"),
    "bundle": (lambda p, i: Pipeline(5), "argument-type", "bundle is 5 of type int"),
    "backend": (lambda p, i: Pipeline(p.bundle, backend=None), "argument-type", "backend is None"),
    "threads": (
        lambda p, i: Pipeline(p.bundle, threads=1.5),
        "argument-type",
        "threads is 1.5 of type float",
    ),
}

VALUES: dict[str, Case] = {
    "max_tokens": (lambda p, i: p.ask(i, "?", max_tokens=-1), "decoding-out-of-range", "max_tokens is -1"),
    "temperature": (
        lambda p, i: p.ask(i, "?", temperature=float("nan")),
        "decoding-out-of-range",
        "temperature is nan",
    ),
    "keep": (lambda p, i: p.with_selector(keep=-3), "keep-out-of-range", "-3 visual tokens"),
    "threads": (lambda p, i: Pipeline(p.bundle, threads=-1), "threads-out-of-range", "-1 threads"),
    "array": (lambda p, i: p.ask(np.zeros((4, 4, 3)), "?"), "image-type-unsupported", "float64"),
    "several images in an array": (
        lambda p, i: p.ask(np.zeros((2, 4, 4, 3), np.uint8), "?"),
        "image-type-unsupported",
        "[2, 4, 4, 3]",
    ),
    "empty array": (
        lambda p, i: p.ask(np.zeros((0, 4, 3), np.uint8), "?"),
        "image-type-unsupported",
        "[0, 4, 3]",
    ),
    "backend": (lambda p, i: Pipeline(p.bundle, backend="tpu"), "backend-unknown", "'tpu'"),
    "image": (lambda p, i: p.ask("nowhere.png", "?"), "image-missing", "'nowhere.png'"),
}


@pytest.mark.parametrize("case", TYPES)
def test_another_type(pipeline: Pipeline, image: Path, case: str) -> None:
    call, code, shown = TYPES[case]
    with refused(code, shown) as caught:
        call(pipeline, image)
    assert isinstance(caught.value, UserTypeError)
    assert isinstance(caught.value, TypeError)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", VALUES)
def test_another_value(pipeline: Pipeline, image: Path, case: str) -> None:
    call, code, shown = VALUES[case]
    with refused(code, shown) as caught:
        call(pipeline, image)
    assert not isinstance(caught.value, TypeError)


def test_numbers_of_numpy_are_numbers(pipeline: Pipeline, image: Path) -> None:
    answer = pipeline.ask(image, "?", max_tokens=np.int64(2), temperature=np.float32(0), stop=["x"])
    assert len(answer.token_ids) <= 2


def test_a_wrong_option_is_told_before_the_image_is_read(pipeline: Pipeline) -> None:
    with refused("argument-type", "max_tokens", "'many'"):
        pipeline.ask("nowhere.png", "?", max_tokens="many")


def test_it_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(UserTypeError("x is 5.", code="argument-type")))
    assert (type(error), str(error), error.code) == (UserTypeError, "x is 5.", "argument-type")


def test_the_public_names() -> None:
    for name in divprune_edge.__all__:
        assert getattr(divprune_edge, name) is not None
