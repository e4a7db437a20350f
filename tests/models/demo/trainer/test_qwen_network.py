"""The training network of the second demo is the stock Qwen3-VL: same names, same numbers, images and clips."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from divprune_edge.models.demo.questions import Question  # noqa: E402
from divprune_edge.models.demo.trainer.packs import build_batch  # noqa: E402
from divprune_edge.models.demo.trainer.qwen.checkpoint import (  # noqa: E402
    FORM,
    IMAGE,
    TEXT,
    VIDEO,
    VISION,
    qwen_config,
)
from divprune_edge.models.demo.trainer.qwen.layout import Layout, of_clip, of_images  # noqa: E402
from divprune_edge.models.demo.trainer.qwen.network import DemoQwen  # noqa: E402
from divprune_edge.models.demo.trainer.qwen.phases import answer_logits, grid, patchify  # noqa: E402

QUESTION = Question("color", "color", "What color is the circle?", "red")
LAYOUTS = {
    "an image": (of_images([(3, 5)]), IMAGE),
    "two images": (of_images([(2, 3), (4, 2)]), IMAGE),
    "a clip": (of_clip((3, 2), [0.3, 1.3]), VIDEO),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_the_stock_model(name: str) -> None:
    from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration

    layout, mark = LAYOUTS[name]
    torch.manual_seed(0)
    stock = Qwen3VLForConditionalGeneration(qwen_config(VISION, TEXT)).eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ours = DemoQwen()
    ours.load_state_dict(stock.state_dict())
    drawn = np.random.default_rng(0).integers(0, 256, (len(layout.grids), 2, 1, 40, 40, 3), dtype=np.uint8)
    patches = [
        patchify([frame[:, : 8 * down, : 8 * across] for frame in frames])
        for frames, (down, across) in zip(drawn, layout.grids, strict=True)
    ]
    batch = build_batch([[[QUESTION]]], form=FORM)
    with torch.no_grad():
        tower = ours.model.visual
        features = [tower.look(p, grid(size, tower)) for p, size in zip(patches, layout.grids, strict=True)]
        found = answer_logits(ours, layout, features, batch)
        wanted = _stock_logits(stock, layout, mark, patches, batch.ids[0])[batch.columns - len(batch.ids[0])]
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def _stock_logits(stock, layout: Layout, mark: int, patches, text):  # type: ignore[no-untyped-def]
    ids = [
        token for s in layout.segments for token in ([s] if isinstance(s, int) else [mark] * (s[0] * s[1]))
    ]
    ids = torch.cat([torch.tensor(ids), text])[None]
    grids = torch.tensor([[1, 2 * down, 2 * across] for down, across in layout.grids])
    pixels = torch.cat([p.flatten(0, 1) for p in patches])
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if mark == VIDEO:
        grids = torch.tensor([[len(grids), *grids[0, 1:].tolist()]])
        media = {"pixel_values_videos": pixels, "video_grid_thw": grids}
    else:
        media = {"pixel_values": pixels, "image_grid_thw": grids}
    return stock(input_ids=ids, mm_token_type_ids=kinds, attention_mask=torch.ones_like(ids), **media).logits[
        0
    ]
