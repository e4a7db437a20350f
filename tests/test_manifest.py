"""The manifest's ids: ranges in JSON and in Python; its layers; and how its checkpoint is exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import refused

from divprune_edge.manifest import MANIFEST, LayerGroup, Prompt, ScheduleInfo, Source, read_manifest


def prompt(ids: Any) -> Prompt:
    return Prompt.model_validate(
        {
            "tokenizer": "tokenizer.json",
            "chat_template": "chat_template.jinja",
            "image_token": "<image>",
            "image_token_id": 4,
            "bos_token": None,
            "eos_token": None,
            "pad_token": None,
            "unk_token": None,
            "stop_ids": [2],
            "forbidden_ids": ids,
        }
    )


def test_thousands_of_rows_are_one_range() -> None:
    ids = (4, 7, 8, *range(32002, 152064))
    written = prompt(ids).model_dump(mode="json")["forbidden_ids"]
    assert written == [4, 7, 8, [32002, 152063]]
    assert prompt(json.loads(json.dumps(written))).forbidden_ids == ids


@settings(deadline=None)
@given(st.lists(st.integers(0, 60)))
def test_any_ids_come_back(ids: list[int]) -> None:
    """Ascending and each once; manifests that list every id read as before."""
    assert prompt(ids).forbidden_ids == tuple(sorted(set(ids)))
    assert (
        prompt(prompt(ids).model_dump(mode="json")["forbidden_ids"]).forbidden_ids
        == prompt(ids).forbidden_ids
    )


def test_a_few_bytes_of_ranges_are_a_few_bytes() -> None:
    found = prompt([[0, (1 << 24) - 1]] * 10_000).forbidden_ids
    assert found.ranges == ((0, (1 << 24) - 1),)
    assert len(found) == 1 << 24


def test_an_id_without_a_logit_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    data = json.loads((demo_bundle / MANIFEST).read_text(encoding="utf-8"))
    data["prompt"]["forbidden_ids"] = [data["language_model"]["vocabulary"]]
    (tmp_path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with refused("manifest-invalid", "forbidden"):
        read_manifest(tmp_path)


def test_an_id_without_an_embedding_is_never_sampled(demo_bundle: Path, tmp_path: Path) -> None:
    """It would be a visual token's, of which a step has none: memory that is not the table's, on a GPU."""
    data = json.loads((demo_bundle / MANIFEST).read_text(encoding="utf-8"))
    language, forbidden = data["language_model"], data["prompt"]["forbidden_ids"]
    last = language["vocabulary"] - 1
    language["embedding_rows"] = last - 1
    for ids, fits in ([last - 1, last], True), ([last - 1], False), ([last], False):
        data["prompt"]["forbidden_ids"] = [*(i for i in forbidden if i not in (last - 1, last)), *ids]
        (tmp_path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
        if fits:
            read_manifest(tmp_path)
            continue
        with refused("manifest-invalid", f"id {last - 1} may be sampled"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(("capacity", "room"), [(None, 4096), (640, 640), (8192, 4096)])
def test_all_layers_are_one_group(capacity: int | None, room: int, demo_bundle: Path, tmp_path: Path) -> None:
    """It follows from what manifests have always said, those of older exports too."""
    data = json.loads((demo_bundle / MANIFEST).read_text(encoding="utf-8"))
    language = data["language_model"]
    assert "groups" not in language
    for later in ("window", "cost", "capacity"):
        del language[later]
    language |= {"context": 4096} | ({} if capacity is None else {"capacity": capacity})
    (tmp_path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    info = read_manifest(tmp_path).language_model
    assert info.groups == (LayerGroup(0, 4, capacity),)
    assert info.positions == room


def test_an_image_that_a_schedule_spares() -> None:
    """A cut leaves all of an image that has no more than it keeps."""
    cuts = ({"before": 8, "keep": 72}, {"before": 16, "keep": 36})
    schedule = ScheduleInfo(method="fastv", visual_tokens=144, numbering="compact", cuts=cuts)
    assert schedule.spared(73) is None
    assert "from layer 16 on alone" in str(schedule.spared(72)) and "no cut" in str(schedule.spared(36))


def test_tensors_of_a_group_have_the_numbers_of_its_layers() -> None:
    assert LayerGroup(2, 2, None).cache_tensors == ("2.key", "2.value", "3.key", "3.value")


@pytest.mark.parametrize("bad", [[3, 1], [-1, 2], [0, 1 << 40], [1], [1, 2, 3], ["1", 2]])
def test_what_is_no_range_is_refused(bad: list[Any], demo_bundle: Path, tmp_path: Path) -> None:
    data = json.loads((demo_bundle / MANIFEST).read_text(encoding="utf-8"))
    data["prompt"]["forbidden_ids"] = [bad]
    (tmp_path / MANIFEST).write_text(json.dumps(data), encoding="utf-8")
    with refused("manifest-invalid", "prompt.forbidden_ids"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("demo", ""),
        ("llava-hf/llava-1.5-7b-hf", " --model llava-hf/llava-1.5-7b-hf"),
        ("my-llava", " --model PATH/my-llava"),
    ],
)
def test_the_command_that_exports_it_again(model: str, options: str) -> None:
    """The demo needs no name, and of a folder the name alone is known: it must not pass for a path."""
    source = Source(model=model, revision=None, licence=None, config_sha256="0" * 64)
    assert source.export_command == f"python -m export llava{options}"
