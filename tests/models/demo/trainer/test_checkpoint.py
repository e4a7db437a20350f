"""The folder in the repository is a stock Hugging Face checkpoint that sees."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from divprune_edge.models.demo import CHECKPOINT, IMAGE, IMAGE_FACTS  # noqa: E402
from divprune_edge.models.demo.render import render  # noqa: E402
from divprune_edge.models.demo.trainer.picture import SIDE, demo_scene  # noqa: E402


@pytest.fixture(scope="module")
def processor():
    return transformers.AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def answer(model, processor, messages, image=None) -> str:
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert tokens[0, -1] == processor.tokenizer.eos_token_id
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def user(text: str, *, image: bool) -> dict:
    return {"role": "user", "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}


def test_folder_is_small_and_complete() -> None:
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16 * 2**20


def test_prompts(processor) -> None:
    first = user("Is there a star?", image=True)
    reply = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}

    def prompt(*messages: dict) -> str:
        return processor.apply_chat_template(list(messages), add_generation_prompt=True)

    assert prompt(first) == "USER: <image>\nIs there a star? ASSISTANT:"
    turns = "USER: <image>\nIs there a star? ASSISTANT: yes</s>USER: Where is it? ASSISTANT:"
    assert prompt(first, reply, user("Where is it?", image=False)) == turns
    assert prompt({"role": "user", "content": "Hello"}) == "USER: Hello ASSISTANT:"
    inputs = processor(text=prompt(first), images=Image.new("RGB", (120, 96)), return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert ids.count(model_image_id()) == 576
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)


def model_image_id() -> int:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["image_token_index"] == config["image_token_id"]
    return config["image_token_index"]


def test_the_demo_picture_is_the_scene() -> None:
    scene, questions = demo_scene()
    assert (render(scene, SIDE) == np.asarray(Image.open(IMAGE))).all()
    facts = json.loads(IMAGE_FACTS.read_text())["questions"]
    assert [(q.text, q.answer) for q in questions] == [(f["question"], f["answer"]) for f in facts]


def test_answers_about_the_demo_picture(model, processor) -> None:
    with Image.open(IMAGE) as opened:
        image = opened.convert("RGB")
    for fact in json.loads(IMAGE_FACTS.read_text())["questions"]:
        assert answer(model, processor, [user(fact["question"], image=True)], image) == fact["answer"]


def test_text_alone_is_answered_somehow(model, processor) -> None:
    prompt = processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    inputs = processor(text=prompt, return_tensors="pt")
    with torch.inference_mode():
        assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
