"""Weight files as they are found: sharded, truncated, pickled, quantised, of the wrong shape, not finite."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import VARIATIONS, edit_json, make_checkpoint
from exporting import export, plan_of
from raising import refused
from safetensors.numpy import load_file, save_file

from divprune_edge.export.checkpoint import Checkpoint

LATE = "model.language_model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def plain(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint with one weight file, to damage."""
    return shutil.copytree(checkpoint("plain"), tmp_path / "plain")


@pytest.fixture
def sharded(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint in four shards, to damage."""
    return shutil.copytree(checkpoint("shards"), tmp_path / "sharded")


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, {"format": "pt"})


def refusal(folder: Path, code: str, *values: object, **options: Any) -> str:
    """Plan and export; return the sentence that refuses it with this code and these values. Nothing is left."""
    output = folder.parent / "refused"
    with refused(code, *values) as error:
        export(plan_of(folder, **options), output)
    assert not output.exists()
    assert not list(folder.parent.glob(".refused*"))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_shards_hold_the_same_tensors(checkpoint: Callable[[str], Path]) -> None:
    with Checkpoint(checkpoint("plain"), "a") as one, Checkpoint(checkpoint("shards"), "b") as four:
        assert len({tensor.file for tensor in four.tensors.values()}) == 4
        assert set(one.tensors) == set(four.tensors)
        for name in one.tensors:
            assert np.array_equal(one.read(name), four.read(name))


def test_a_single_file_outranks_an_index(plain: Path) -> None:
    (plain / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert plan_of(plain).weight_bytes > 0


def test_no_such_folder(tmp_path: Path) -> None:
    with refused("checkpoint-missing"):
        Checkpoint(tmp_path / "nowhere", "x")


def test_no_config(plain: Path) -> None:
    (plain / "config.json").unlink()
    refusal(plain, "checkpoint-file-missing", "config.json")


def test_a_config_that_is_not_json(plain: Path) -> None:
    (plain / "config.json").write_text("{")
    refusal(plain, "checkpoint-file-invalid", "config.json")


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00003-of-00004.safetensors").unlink()
    refusal(sharded, "weights-incomplete", "model-00003-of-00004.safetensors", "of 4")


@pytest.mark.parametrize("length", [0, 7, 300, -1])
def test_a_truncated_shard(sharded: Path, length: int) -> None:
    file = sharded / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    refusal(sharded, "weights-damaged", "model-00002-of-00004.safetensors")


def test_a_shard_lacks_a_tensor_of_the_index(sharded: Path) -> None:
    file = sharded / "model-00001-of-00004.safetensors"
    weights = load_file(file)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, file)
    refusal(sharded, "weights-incomplete", "model.safetensors.index.json", lost)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_leaves_the_folder(sharded: Path, shard: str) -> None:
    edit_json(sharded / "model.safetensors.index.json", lambda data: data["weight_map"].update({LATE: shard}))
    (sharded.parent / "secret.safetensors").write_bytes(
        (sharded / "model-00001-of-00004.safetensors").read_bytes()
    )
    refusal(sharded, "weights-incomplete", shard)


def test_an_index_without_a_map(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{}")
    refusal(sharded, "weights-incomplete", "weight_map")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "consolidated.00.pt"])
def test_only_pickles(plain: Path, name: str) -> None:
    (plain / "model.safetensors").rename(plain / name)
    refusal(plain, "weights-pickled", name, "save_pretrained('FOLDER'), and export FOLDER")


def test_no_weights(plain: Path) -> None:
    (plain / "model.safetensors").unlink()
    refusal(plain, "weights-missing", "model.safetensors", "model.safetensors.index.json")


def test_a_missing_weight(plain: Path) -> None:
    edit_weights(plain, lambda weights: weights.pop(LATE))
    refusal(plain, "weights-incomplete", LATE)


def test_weights_and_config_do_not_belong_together(plain: Path) -> None:
    edit_json(plain / "config.json", lambda data: data["text_config"].update(intermediate_size=64))
    sentence = refusal(plain, "weights-shape-unfit", "[56, 40]", "[64, 40]")
    assert re.search(r"'\S+mlp\.\w+\.weight'", sentence)


@pytest.mark.parametrize(("dtype", "name"), [(np.int8, "I8"), (np.uint8, "U8"), (np.float64, "F64")])
def test_weights_of_another_type(plain: Path, dtype: Any, name: str) -> None:
    edit_weights(plain, lambda weights: weights.update({LATE: weights[LATE].astype(dtype)}))
    refusal(plain, "weights-dtype-unsupported", LATE, name, "F32, F16, BF16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_that_are_not_finite(plain: Path, value: float, precision: str) -> None:
    edit_weights(plain, lambda weights: weights[LATE].__setitem__((3, 4), value))
    refusal(plain, "weights-not-finite", LATE, precision=precision)


@pytest.mark.parametrize("value", [65520.0, -1e20])
def test_a_weight_that_does_not_fit_float16(plain: Path, value: float) -> None:
    edit_weights(plain, lambda weights: weights[LATE].__setitem__((3, 4), value))
    refusal(
        plain, "weights-overflow", LATE, "float16", f"{abs(value):.3g}", "--precision fp32", precision="fp16"
    )
    export(plan_of(plain), plain.parent / "fine")


def test_the_largest_float16_fits(plain: Path) -> None:
    edit_weights(plain, lambda weights: weights[LATE].__setitem__((3, 4), 65504.0))
    export(plan_of(plain, precision="fp16"), plain.parent / "fine")


def test_bfloat16_that_does_not_fit_float16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = make_checkpoint(tmp_path / "tiny", **VARIATIONS["bfloat16 weights"])
    weights = load_torch(folder / "model.safetensors")
    weights[LATE][0, 0] = torch.tensor(1e30, dtype=torch.bfloat16)
    save_torch(weights, folder / "model.safetensors", {"format": "pt"})
    refusal(folder, "weights-overflow", LATE, "float16", "1e+30", precision="fp16")


def test_an_untied_checkpoint_without_a_head(plain: Path) -> None:
    edit_weights(plain, lambda weights: weights.pop("lm_head.weight"))
    refusal(plain, "weights-incomplete", "lm_head.weight")


def test_no_tokenizer(plain: Path) -> None:
    (plain / "tokenizer.json").unlink()
    refusal(plain, "tokenizer-missing", "tokenizer.json")


def test_no_image_processor(plain: Path) -> None:
    (plain / "preprocessor_config.json").unlink()
    refusal(plain, "image-processor-missing", "preprocessor_config.json")
