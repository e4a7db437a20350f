"""From an image and a question to the same ids as transformers, with all visual tokens and with the kept ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree
from images_made import noise_image
from PIL import Image

from divprune_edge import Pipeline
from divprune_edge.models.demo import __file__ as demo_file

CHECKPOINT = Path(demo_file).parent / "checkpoint"
QUESTION = "what color is the circle?"
STEPS = 12


@pytest.fixture(scope="module")
def oracle() -> Any:
    """``answer(image, kept) -> ids, smallest top-2 margin``: greedy decoding by transformers in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    processor = CLIPImageProcessorPil.from_pretrained(CHECKPOINT)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    place = int((ids == model.config.image_token_id).nonzero()[0])

    @torch.no_grad()
    def answer(image: Image.Image, kept: np.ndarray) -> tuple[list[int], list[float]]:
        pixels = torch.tensor(np.asarray(processor(images=image, return_tensors="np")["pixel_values"]))
        features = model.get_image_features(pixel_values=pixels)
        features = getattr(features, "pooler_output", features)[0].reshape(
            -1, model.config.text_config.hidden_size
        )
        embed = model.get_input_embeddings()
        rows = torch.cat([embed(ids[:place]), features[torch.tensor(kept)], embed(ids[place + 1 :])])[None]
        out, margins, past = [], [], None
        for _ in range(STEPS):
            result = model.model.language_model(inputs_embeds=rows, past_key_values=past, use_cache=True)
            past = result.past_key_values
            logits = model.lm_head(result.last_hidden_state[0, -1])
            logits[model.config.image_token_id] = -torch.inf
            top = torch.topk(logits, 2)
            out.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            rows = embed(top.indices[:1])[None]
        return out, margins

    return answer


@pytest.mark.parametrize("selector", ["divprune", "none"])
@pytest.mark.parametrize("size", [(61, 150), (333, 200)])
def test_greedy_ids_agree(demo_bundle: Path, oracle: Any, selector: str, size: tuple[int, int]) -> None:
    image = noise_image(12, 9, size[0]).resize(size, Image.Resampling.BILINEAR)
    answer = Pipeline(demo_bundle, selector).ask(image, QUESTION, max_tokens=STEPS, ignore_eos=True)
    agree(answer.token_ids, *oracle(image, answer.kept_indices))
