"""The training network is the stock model: same names, same numbers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from divprune_edge.models.demo.trainer.checkpoint import llava_config  # noqa: E402
from divprune_edge.models.demo.trainer.network import DemoLlava  # noqa: E402

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 96,
    "patch_size": 4,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def test_logits_equal_the_stock_model() -> None:
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(0)
    stock = LlavaForConditionalGeneration(llava_config(VISION, TEXT)).eval()
    ours = DemoLlava(VISION, TEXT)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    missing, _ = ours.load_state_dict(stock.state_dict(), strict=False)
    assert missing == []

    pixels = torch.randn(2, 3, 96, 96)
    head, tail = torch.tensor([1, 7, 9]), torch.tensor([11, 12, 13, 14, 15])
    ids = torch.cat([head, torch.full((576,), 4), tail]).expand(2, -1)
    with torch.no_grad():
        wanted = stock(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[:, -5:]
        patches = pixels.view(2, 3, 24, 4, 24, 4).permute(0, 2, 4, 1, 3, 5).reshape(2, 576, 48)
        visual = ours.model.multi_modal_projector(ours.model.vision_tower(patches))
        language = ours.model.language_model
        words = language.embed_tokens(torch.cat([head, tail])).expand(2, -1, -1)
        x = torch.cat([words[:, :3], visual, words[:, 3:]], 1)
        positions = torch.arange(x.shape[1]).expand(2, -1)
        mask = torch.ones(5, x.shape[1]).tril(x.shape[1] - 5).bool()[None, None].expand(2, -1, -1, -1)
        found = ours.lm_head(language(x, positions, 3 + 576, mask))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
