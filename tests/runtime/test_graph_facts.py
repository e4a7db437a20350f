"""A manifest that says other than its graphs is refused before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import run_module
from fake_device import FakeDevice, FakeEngines
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline

Edit = Callable[[dict[str, Any]], object]


def edited(bundle: Path, edit: Edit) -> Path:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return bundle


def tensor(manifest: dict[str, Any], part: str, side: str, name: str) -> dict[str, Any]:
    graph = manifest["selectors"][0] if part == "selector" else manifest[part]
    return next(one for one in graph[side] if one["name"] == name)


LANGUAGE = "language_model"
EDITS: dict[str, tuple[Edit, str]] = {
    "keep": (lambda m: m["selectors"][0].update(keep=1), "keep is 1, but 'kept_tokens' has the shape [?, 58, 192]"),
    "keep and outputs": (
        lambda m: (
            m["selectors"][0].update(keep=57),
            tensor(m, "selector", "outputs", "kept_tokens").update(shape=["batch", 57, 192]),
            tensor(m, "selector", "outputs", "kept_indices").update(shape=["batch", 57]),
        ),
        "'kept_tokens' has the shape ['batch', 57, 192], but it has [?, 58, 192]",
    ),
    "candidates": (lambda m: m["selectors"][0].update(candidates=577), "candidates is 577"),
    "visual tokens": (lambda m: m["vision_encoder"].update(tokens=575), "tokens is 575"),
    "width": (lambda m: m["vision_encoder"].update(width=191), "width 191"),
    "image": (lambda m: m["vision_encoder"].update(image_height=224), "images are 96 x 224"),
    "token type": (lambda m: m.update(token_dtype="float16"), "token_dtype float16"),
    "more layers": (lambda m: m[LANGUAGE].update(layers=8), "layers is 8"),
    "fewer layers": (lambda m: m[LANGUAGE].update(layers=3), "layers is 3, but the graph has caches of 4"),
    "heads": (lambda m: m[LANGUAGE].update(kv_heads=1), "kv_heads 1"),
    "head width": (lambda m: m[LANGUAGE].update(head_dim=64), "head_dim 64"),
    "cache type": (lambda m: m[LANGUAGE].update(cache_dtype="float16"), "cache_dtype float16"),
    "vocabulary": (lambda m: m[LANGUAGE].update(vocabulary=31), "vocabulary is 31"),
    "embedding rows": (lambda m: m[LANGUAGE].update(embedding_rows=9999), "embedding_rows is 9999"),
    "context": (lambda m: m[LANGUAGE].update(context=99999), "context is 99999"),
    "dialect": (lambda m: m[LANGUAGE].update(dialect="onnxruntime"), "its dialect is onnxruntime"),
    "another type": (
        lambda m: tensor(m, LANGUAGE, "inputs", "logits_index").update(dtype="int32"),
        "'logits_index' is int32, but it is int64",
    ),
    "another name": (
        lambda m: tensor(m, LANGUAGE, "outputs", "logits").update(name="scores"),
        "there is an output 'scores', but the graph has none",
    ),
    "one too few": (lambda m: m[LANGUAGE]["inputs"].pop(0), "there is no input 'input_ids'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_another_number_is_refused(kind: str, bundle_copy: Path, image: Path) -> None:
    edit, sentence = EDITS[kind]
    with pytest.raises(UserError) as error:
        Pipeline(edited(bundle_copy, edit)).ask(image, "What?", max_tokens=1)
    assert error.value.code == "manifest-does-not-fit"
    assert sentence in str(error.value)
    assert "export the bundle again" in str(error.value)


def test_a_graph_of_another_bundle_is_refused(bundle_copy: Path, image: Path) -> None:
    """As above where the manifest is right and the file is not, sizes and hashes included."""
    added = run_module("export", "selector", str(bundle_copy), "--keep", "29", "--no-verify")
    assert added.returncode == 0, added.stderr
    shutil.copy(bundle_copy / "selectors/divprune-29.onnx", bundle_copy / "selectors/divprune-58.onnx")
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["selectors/divprune-58.onnx"] = manifest["files"]["selectors/divprune-29.onnx"]
    path.write_text(json.dumps(manifest))
    with refused("manifest-does-not-fit", "'kept_tokens'", 29, 58):
        Pipeline(bundle_copy).ask(image, "What?", max_tokens=1)


def test_the_command_says_so_in_one_sentence(bundle_copy: Path, image: Path) -> None:
    edited(bundle_copy, EDITS["keep"][0])
    done = run_module("runtime", "ask", str(bundle_copy), "--image", str(image), "What?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[manifest-does-not-fit]: ")
    assert done.stderr.count("\n") == 1


def test_bundles_of_older_exports_lack_the_notes(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from divprune_edge.runtime.backends import graph_facts

    manifest = Bundle.open(bundle_copy).manifest
    graph_facts._check_noted(manifest, manifest.language_model, {})
    with refused("manifest-does-not-fit", "embedding_rows"):
        graph_facts._check_noted(manifest, manifest.language_model, {"divprune_edge.embedding_rows": "1"})


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_engines_are_held_against_it_too(dialect: str, tmp_path: Path) -> None:
    done = run_module(
        "export", "llava", "--no-verify", "--dialect", dialect, "--output", str(tmp_path / "demo")
    )
    assert done.returncode == 0, done.stderr
    sound = Bundle.open(tmp_path / "demo")
    engines = FakeEngines(sound)
    selector = sound.selector()
    TensorRtBackend(sound, FakeDevice(), engines).load(selector)
    edits: tuple[Edit, ...] = (
        EDITS["keep and outputs"][0],
        lambda m: m[LANGUAGE].update(layers=8),
        lambda m: m[LANGUAGE].update(capacity=m[LANGUAGE]["capacity"] + 1),
        lambda m: m[LANGUAGE].update(vocabulary=31),
    )
    for number, edit in enumerate(edits):
        changed = Bundle.open(edited(Path(shutil.copytree(tmp_path / "demo", tmp_path / f"{number}")), edit))
        with pytest.raises(UserError) as error:
            TensorRtBackend(changed, FakeDevice(), engines).load(changed.selector())
        assert error.value.code == "manifest-does-not-fit"
