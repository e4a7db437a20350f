"""What the second demo is trained on is what its checkpoint's processor makes of the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from divprune_edge.models.demo.render import PATCH, render_with_owners  # noqa: E402
from divprune_edge.models.demo.scenes import Split, sample_scene, scene_rng  # noqa: E402
from divprune_edge.models.demo.trainer.qwen.checkpoint import LARGEST, qwen_config, save_checkpoint  # noqa: E402
from divprune_edge.models.demo.trainer.qwen.phases import choose_blocks, owners_at, patchify, resized  # noqa: E402


def test_patches_are_those_of_the_processor(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    save_checkpoint(tmp_path, None)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    wanted = processor(images=[Image.fromarray(pixels[0])], return_tensors="pt")
    assert wanted["image_grid_thw"].tolist() == [[1, 24, 16]]
    assert torch.allclose(patchify([pixels] * 2)[0], wanted["pixel_values"], atol=1e-5)


def test_owners_of_a_size_lie_where_the_shapes_are() -> None:
    _, owners = render_with_owners(sample_scene(scene_rng(Split.TRAIN, 0, 3)), LARGEST)
    assert owners.shape == ((LARGEST // PATCH) ** 2,)
    # A channel that says which patch is whose: what is resized like the image must agree where it is not mixed.
    painted = np.repeat(owners.reshape(32, 32).repeat(4, 0).repeat(4, 1)[None, :, :, None], 3, 3)
    for size in ((16, 16), (12, 16), (8, 8)):
        seen = patchify([resized(painted, size)] * 2)[0]
        plain = (seen == seen[:, :1]).all(1)
        found = owners_at(owners[None], size)[0]
        agree = torch.round((seen[:, 0] + 1) * 127.5).long()[plain] == found[plain]
        assert agree.float().mean() > 0.95


def test_what_shows_something_is_chosen_first() -> None:
    owners = torch.zeros(1, 64, dtype=torch.long)
    owners[0, [5, 21]] = 1
    index = choose_blocks(owners, 3, torch.Generator().manual_seed(0))[0]
    assert {4, 5, 6, 7, 20, 21, 22, 23} <= set(index.tolist())
    assert len(index) == 12


def test_the_checkpoint_is_small() -> None:
    from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(qwen_config())
    assert 2 * sum(p.numel() for p in model.parameters()) < 8e6
