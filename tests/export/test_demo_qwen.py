"""The demo checkpoint of Qwen3-VL's architecture: answers as transformers', and right ones, to images and clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answers import agree
from exporting import export, plan_of
from PIL import Image
from qwen_reference import QwenReference

from divprune_edge import Pipeline
from divprune_edge.models.demo import CLIP, CLIP_FACTS, IMAGE, IMAGE_FACTS, QWEN_CHECKPOINT
from divprune_edge.models.demo.held_out import held_out
from divprune_edge.models.demo.render import render

pytest.importorskip("torch")
pytest.importorskip("transformers")

IMAGES, STEPS = 12, 6


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    plan = plan_of(QWEN_CHECKPOINT, 26, frames=4)
    return Pipeline(export(plan, tmp_path_factory.mktemp("demo") / "bundle").folder, threads=1)


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in QWEN_CHECKPOINT.iterdir()) <= 8e6


@pytest.mark.slow
def test_answers_equal_transformers(pipeline: Pipeline) -> None:
    """Unpruned, of images of three sizes and of two at once; only a tie may fall the other way."""
    stock, unpruned = QwenReference(QWEN_CHECKPOINT), pipeline.with_selector("none")
    forbidden = tuple(pipeline.bundle.manifest.prompt.forbidden_ids)
    data = held_out(IMAGES)
    images = [Image.fromarray(render(scene, 128)) for scene in data.scenes]
    images = [image.resize(((128, 128), (128, 96), (72, 96))[i % 3]) for i, image in enumerate(images)]
    for i, asked in enumerate(data.questions):
        shown = [images[i]] if i % 4 else [images[i], images[i - 1]]
        ids = stock.rendered([(asked[0].text, len(shown))])
        found = unpruned.ask(shown, asked[0].text, max_tokens=STEPS, ignore_eos=True).token_ids
        agree(found, *stock.generated(stock.inputs(ids, shown), STEPS, forbidden))


def test_most_of_the_demo_is_answered_right(pipeline: Pipeline) -> None:
    """The bundled image and clip, unpruned: what `make demo-qwen` shows."""
    unpruned, right = pipeline.with_selector("none"), []
    for facts, media in ((IMAGE_FACTS, {"image": IMAGE}), (CLIP_FACTS, {"image": None, "video": CLIP})):
        for entry in json.loads(Path(facts).read_text(encoding="utf-8"))["questions"]:
            answer = unpruned.ask(question=entry["question"], max_tokens=8, **media)
            right.append(answer.answer == entry["answer"])
    assert sum(right) >= len(right) // 2
