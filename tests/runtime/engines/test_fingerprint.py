"""Whatever an engine depends on is in its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh

from divprune_edge.manifest import read_manifest
from divprune_edge.runtime.engines.fingerprint import Facts, differences, fingerprint, graph_digest
from divprune_edge.runtime.engines.profiles import Limits

FACTS = Facts(
    onnx={"vision_encoder": "a" * 64, "language_model": "b" * 64},
    tensorrt="10.3.0",
    cuda="12.6",
    sm=87,
    plugin="c" * 64,
    limits=Limits(max_prompt=512, kept=(58, 58, 58)),
)
CHANGES: list[dict[str, Any]] = [
    {"onnx": {"vision_encoder": "a" * 64, "language_model": "d" * 64}},
    {"onnx": {"vision_encoder": "a" * 64}},
    {"tensorrt": "10.3.1"},
    {"cuda": "12.8"},
    {"sm": 90},
    {"plugin": None},
    {"plugin": "d" * 64},
    {"limits": Limits(max_prompt=511, kept=(58, 58, 58))},
    {"limits": Limits(max_prompt=512, kept=(29, 58, 58))},
]


def test_sixteen_digits_that_stay_the_same() -> None:
    assert fingerprint(FACTS) == fingerprint(Facts.model_validate_json(FACTS.model_dump_json()))
    assert len(fingerprint(FACTS)) == 16
    assert set(fingerprint(FACTS)) <= set("0123456789abcdef")


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_any_change_changes_it(change: dict[str, Any]) -> None:
    assert fingerprint(FACTS.model_copy(update=change)) != fingerprint(FACTS)


def test_external_data_counts(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    before = read_manifest(folder)
    language = before.language_model
    (folder / "language_model.data").write_bytes(bytes(4999) + b"\x01")
    refresh(folder, before)
    after = read_manifest(folder)
    assert graph_digest(before, language.file, language.data) != graph_digest(
        after, language.file, language.data
    )
    assert graph_digest(before, language.file) == graph_digest(after, language.file)


def test_differences_name_both_sides() -> None:
    here = {
        "sm": 90,
        "tensorrt": "10.16.2",
        "cuda": "13.2",
        "onnx": {"language_model": "e" * 64, "other": "f"},
    }
    assert differences(FACTS, here) == [
        "were built with sm_87, but this is sm_90",
        "were built with TensorRT 10.3.0, but this is TensorRT 10.16.2",
        "were built with CUDA 12.6, but this is CUDA 13.2",
        "were built from another graph of 'language_model' (sha256 bbbbbbbbbbbb…, now eeeeeeeeeeee…)",
    ]
    same = {"sm": 87, "tensorrt": "10.3.0", "cuda": "12.6", "onnx": {"language_model": "b" * 64}}
    assert differences(FACTS, same) == []
