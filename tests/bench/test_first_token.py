"""The stages up to the first token, measured at tiny sizes: of images in tiles, and of those of any size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import first_token, qwen, tiles


def test_an_image_of_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiles.export(tmp_path, tiny=True)
    results = tiles.measure(bundle, threads=1, rounds=2)
    assert results["tiles"] == 5
    assert results["keep"] == {"pruned": 74, "full": 744}
    assert all(len(samples) == 2 for samples in results["samples_ms"].values())
    assert not (tmp_path / "checkpoint").exists()
    first_token.show(results)
    assert "744" in capsys.readouterr().out


def test_prompts_of_two_lengths_in_all_budgets(tmp_path: Path) -> None:
    results = qwen.measure(qwen.export(tmp_path, qwen.TINY), threads=1, rounds=1)
    of = {
        name: (results["keep"][name], results["keep"][name] + tokens)
        for name, tokens in results["text_tokens"].items()
    }
    assert of == {
        "270, divprune-26": (26, 40),
        "270, divprune-64": (64, 78),
        "270, unpruned": (256, 270),
        "280, divprune-26": (26, 50),
        "280, divprune-64": (64, 88),
        "280, unpruned": (256, 280),
    }
    assert results["ttft_saved"]["280, unpruned"] == 0
    assert results["prefill_ratio"]["270, unpruned"] == 1
    for samples in results["samples_ms"].values():
        assert all(len(stages) == len(first_token.STAGES) and min(stages) >= 0 for stages in samples)


def test_the_sizes_are_those_of_the_published_model() -> None:
    from divprune_edge.models.families import family_named

    spec = family_named("qwen3_vl").spec(
        {"model_type": "qwen3_vl", "vision_config": qwen.FULL.vision, "text_config": qwen.FULL.text}
    )
    shapes = [*spec.decoder.parameters(151936).values(), *spec.vision.parameters().values()]
    # 2.13 billion, the output head being the embedding, as the model's card says 2B.
    assert round(sum(map(math.prod, shapes)) / 1e9, 2) == 2.13
    assert spec.decoder.rope.sections == (24, 20, 20)
