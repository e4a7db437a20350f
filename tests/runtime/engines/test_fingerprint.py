"""Whatever an engine depends on is in its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh

from divprune_edge.manifest import read_manifest
from divprune_edge.models.profiles import EngineLimits
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.engines.facts import DeviceFacts
from divprune_edge.runtime.engines.fingerprint import Facts, differences, fingerprint, graph_digest

FACTS = Facts(
    onnx={"vision_encoder": "a" * 64, "language_model": "b" * 64},
    edition="tensorrt",
    tensorrt="10.3.0",
    cuda="12.6",
    sms=(87,),
    plugin="c" * 64,
    limits=EngineLimits(max_prompt=512, kept=(58, 58, 58)),
)
CHANGES: list[dict[str, Any]] = [
    {"onnx": {"vision_encoder": "a" * 64, "language_model": "d" * 64}},
    {"onnx": {"vision_encoder": "a" * 64}},
    {"tensorrt": "10.3.1"},
    {"cuda": "12.8"},
    {"sms": (90,)},
    {"sms": (87, 89)},
    {"edition": "tensorrt-rtx"},
    {"cuda": None},
    {"plugin": None},
    {"plugin": "d" * 64},
    {"limits": EngineLimits(max_prompt=511, kept=(58, 58, 58))},
    {"limits": EngineLimits(max_prompt=512, kept=(29, 58, 58))},
]


def test_sixteen_digits_that_stay_the_same() -> None:
    assert fingerprint(FACTS) == fingerprint(Facts.model_validate_json(FACTS.model_dump_json()))
    assert len(fingerprint(FACTS)) == 16
    assert set(fingerprint(FACTS)) <= set("0123456789abcdef")


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_any_change_changes_it(change: dict[str, Any]) -> None:
    assert fingerprint(FACTS.model_copy(update=change)) != fingerprint(FACTS)


def test_engines_from_before_images_were_stated_keep_their_name() -> None:
    assert fingerprint(FACTS) == "cb996a59f226e77b"


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


def device(edition: Edition, sm: int, tensorrt: str, cuda: str | None) -> DeviceFacts:
    return DeviceFacts(edition, (sm,), cuda, tensorrt, shared_memory=False, free_memory=0, host_memory=0)


def test_differences_name_both_sides() -> None:
    now = {"language_model": "e" * 64, "other": "f"}
    assert differences(FACTS, device(TENSORRT, 90, "10.16.2", "13.2"), now) == [
        "were built with sm_87, but this is sm_90",
        "were built with TensorRT 10.3.0, but this is TensorRT 10.16.2",
        "were built with CUDA 12.6, but this is CUDA 13.2",
        "were built from another graph of 'language_model' (sha256 bbbbbbbbbbbb…, now eeeeeeeeeeee…)",
    ]
    assert differences(FACTS, device(TENSORRT, 87, "10.3.0", "12.6"), {"language_model": "b" * 64}) == []


def test_one_of_several_gpus_is_enough() -> None:
    """Engines of TensorRT-RTX serve all GPUs that they were built for; the driver's CUDA does not count."""
    rtx = FACTS.model_copy(
        update={"edition": "tensorrt-rtx", "tensorrt": "1.7.1.116", "cuda": None, "sms": (86, 120)}
    )
    for sm in (86, 120):
        assert differences(rtx, device(TENSORRT_RTX, sm, "1.7.1.116", None), {}) == []
    assert differences(rtx, device(TENSORRT_RTX, 90, "1.8.0.1", None), {}) == [
        "were built with sm_86 or sm_120, but this is sm_90",
        "were built with TensorRT-RTX 1.7.1.116, but this is TensorRT-RTX 1.8.0.1",
    ]
