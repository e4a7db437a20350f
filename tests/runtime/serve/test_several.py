"""Several images of several sizes, and clips by their frames, on the demo of Qwen3-VL's architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_module

from divprune_edge import Pipeline
from divprune_edge.models.demo import CLIP, CLIP_FACTS, IMAGE

from .conftest import Serve, Served, data_url, noise, openai

FRAMES = sorted(CLIP.glob("*.png"))
QUESTION = json.loads(CLIP_FACTS.read_text())["questions"][0]["question"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "qwen"
    checkpoint = str(ROOT / "models/demo/qwen3-vl-checkpoint")
    options = ["--keep", "26", "--frames", "4", "--dialect", "onnxruntime", "--positions", "compact"]
    made = run_module("export", "--model", checkpoint, *options, "--no-verify", "--output", str(folder))
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def qwen(folder: Path, serving: Serve) -> Served:
    return serving(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Pipeline:
    return Pipeline(folder, threads=1)


def parts(question: str, *media: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def image(picture: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def clip(**more: Any) -> dict[str, Any]:
    return {"type": "video", "video": [data_url(frame) for frame in FRAMES], **more}


def ask(served: Served, messages: list[Any], **options: Any) -> Any:
    return served.client().chat.completions.create(model="qwen", messages=messages, max_tokens=8, **options)


def test_images_of_several_sizes(qwen: Served, reference: Pipeline) -> None:
    pictures = [noise(seed, 100 + 60 * seed, 200) for seed in range(3)]
    for count in (1, 2, 3):
        given = pictures[:count]
        answer = ask(qwen, parts("How many shapes are there?", *map(image, given)))
        expected = reference.ask(given, "How many shapes are there?", max_tokens=8)
        assert answer.choices[0].message.content == expected.answer
        assert answer.usage.prompt_tokens == expected.prompt_tokens
        seen = answer.divprune["images"]
        assert [index for one in seen for index in one["kept_indices"]] == expected.kept_indices.tolist()
        for one in seen:
            assert one["grid"]["rows"] * one["grid"]["columns"] == one["candidates"]


def test_a_clip_by_its_frames(qwen: Served, reference: Pipeline) -> None:
    answer = ask(qwen, parts(QUESTION, clip()))
    expected = reference.ask(None, QUESTION, video=CLIP, max_tokens=8)
    assert answer.choices[0].message.content == expected.answer
    (seen,) = answer.divprune["images"]
    assert seen["kept_indices"] == expected.kept_indices.tolist()
    assert len(seen["frames"]) == len(seen["boxes"]) == seen["kept"]
    later = ask(qwen, parts(QUESTION, clip(fps=8)))
    expected = reference.ask(None, QUESTION, video=CLIP, fps=8, max_tokens=8)
    assert later.usage.prompt_tokens == expected.prompt_tokens
    assert later.choices[0].message.content == expected.answer


def test_an_image_and_a_clip_and_then_another_image(qwen: Served, reference: Pipeline) -> None:
    chat = reference.chat(IMAGE, video=CLIP)
    messages = parts(QUESTION, clip(), image(IMAGE))  # images come first, whatever the order
    answer = ask(qwen, messages).choices[0].message
    assert answer.content == chat.ask(QUESTION, max_tokens=8).answer
    other = noise(5, 120, 120)
    messages += [answer, *parts("And here?", image(other))]
    expected = chat.ask("And here?", image=other, max_tokens=8)
    assert ask(qwen, messages).choices[0].message.content == expected.answer


@pytest.mark.parametrize(
    ("video", "code"),
    [
        ([], "clip-empty"),
        ([data_url(frame) for frame in FRAMES] * 2, "clip-frames-out-of-range"),
        ([data_url(FRAMES[0])] * 65, "too-many-frames"),
        ([data_url(FRAMES[0]), data_url(noise(1))], "clip-frame-sizes"),
        ([data_url(b"GIF89a")], "image-format-unknown"),
    ],
)
def test_clips_that_cannot_be_used(qwen: Served, video: list[str], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(qwen, parts(QUESTION, {"type": "video", "video": video}))
    assert error.value.code == code


def test_a_bundle_without_clips(server: Served) -> None:
    status, answer, _ = server.ask({"messages": parts(QUESTION, clip())})
    assert (status, answer["error"]["code"]) == (400, "clips-unsupported")
