"""Opening a bundle: every file is checked, a stamp saves the second hash, selectors are found by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.export.add_selector import add_selectors
from divprune_edge.manifest import MANIFEST
from divprune_edge.runtime import bundle as module
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.info import print_tables


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    names: list[str] = []
    real = module._check_hash
    monkeypatch.setattr(
        module, "_check_hash", lambda f, g, name, i: (names.append(name), real(f, g, name, i))
    )
    return names


def flip_byte(file: Path) -> None:
    """Change one byte in the middle and keep size and modification time."""
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit_manifest(bundle: Path, **fields: object) -> None:
    path = bundle / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_opens_and_finds_files(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    assert bundle.file(bundle.manifest.vision_encoder.file).is_file()


def test_second_open_trusts_the_stamp_and_always_does_not(bundle_copy: Path, hashed: list[str]) -> None:
    listed = set(Bundle.open(bundle_copy).manifest.files)
    assert set(hashed) == listed
    hashed.clear()
    Bundle.open(bundle_copy)
    assert hashed == []
    Bundle.open(bundle_copy, "always")
    assert set(hashed) == listed


def test_touched_file_is_hashed_again(bundle_copy: Path, hashed: list[str]) -> None:
    Bundle.open(bundle_copy)
    hashed.clear()
    os.utime(bundle_copy / "tokenizer.json", ns=(1, 1))
    Bundle.open(bundle_copy)
    assert hashed == ["tokenizer.json"]


def test_another_manifest_over_the_same_files_costs_nothing(bundle_copy: Path, hashed: list[str]) -> None:
    Bundle.open(bundle_copy)
    hashed.clear()
    edit_manifest(bundle_copy, default_selector="none")
    Bundle.open(bundle_copy)
    assert hashed == []


def test_another_hash_in_the_manifest_is_checked(bundle_copy: Path) -> None:
    files = json.loads((bundle_copy / MANIFEST).read_text())["files"]
    Bundle.open(bundle_copy)
    files["tokenizer.json"]["sha256"] = "0" * 64
    edit_manifest(bundle_copy, files=files)
    with refused("bundle-file-changed", "tokenizer.json"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("content", ["[]", "{", '{"tokenizer.json": 5}'])
def test_damaged_stamp_only_costs_hashes(bundle_copy: Path, hashed: list[str], content: str) -> None:
    Bundle.open(bundle_copy)
    for stamp in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json"):
        stamp.write_text(content)
    hashed.clear()
    Bundle.open(bundle_copy)
    assert "tokenizer.json" in hashed


def test_stamp_lies_outside_the_bundle(bundle_copy: Path) -> None:
    before = sorted(bundle_copy.rglob("*"))
    Bundle.open(bundle_copy)
    assert sorted(bundle_copy.rglob("*")) == before


def test_unwritable_cache_only_costs_hashes(
    bundle_copy: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Bundle.open(bundle_copy)
    hashed.clear()
    Bundle.open(bundle_copy)
    assert hashed


@pytest.mark.parametrize("name", ["language_model.data", "selectors/divprune-58.onnx", "chat_template.jinja"])
def test_changed_byte_is_named(bundle_copy: Path, name: str) -> None:
    flip_byte(bundle_copy / name)
    with refused("bundle-file-changed", name):
        Bundle.open(bundle_copy)


def test_changed_byte_behind_the_stamp_is_noticed(bundle_copy: Path) -> None:
    """Size and modification time can be set to what they were, the time of that change cannot."""
    Bundle.open(bundle_copy)
    flip_byte(bundle_copy / "language_model.data")
    with refused("bundle-file-changed", "language_model.data"):
        Bundle.open(bundle_copy)


def test_another_file_in_its_place_is_noticed(bundle_copy: Path, tmp_path: Path) -> None:
    Bundle.open(bundle_copy)
    file = bundle_copy / "language_model.data"
    other = tmp_path / "other"
    shutil.copy2(file, other)
    flip_byte(other)
    other.replace(file)
    with refused("bundle-file-changed", "language_model.data"):
        Bundle.open(bundle_copy)


def test_what_is_no_file_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").unlink()
    os.mkfifo(bundle_copy / "tokenizer.json")
    with refused("bundle-file-unreadable", "tokenizer.json"):
        Bundle.open(bundle_copy)
    (bundle_copy / MANIFEST).unlink()
    os.mkfifo(bundle_copy / MANIFEST)
    with refused("bundle-without-manifest"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "nul\0", "\udce9"])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    with refused("bundle-missing"):
        Bundle.open(name)


def test_truncated_and_missing_files_are_named(bundle_copy: Path) -> None:
    data = bundle_copy / "vision_encoder.data"
    data.write_bytes(data.read_bytes()[:-1])
    with refused("bundle-file-changed", "vision_encoder.data", "manifest.json"):
        Bundle.open(bundle_copy)
    data.unlink()
    with refused("bundle-file-missing", "vision_encoder.data"):
        Bundle.open(bundle_copy)


def test_link_out_of_the_folder_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    real = bundle_copy / "tokenizer.json"
    outside = tmp_path / "elsewhere.json"
    real.rename(outside)
    real.symlink_to(outside)
    with refused("bundle-file-outside"):
        Bundle.open(bundle_copy)


def test_what_looks_like_markup_is_shown_as_it_reads(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = json.loads((bundle_copy / MANIFEST).read_text())["source"]
    edit_manifest(bundle_copy, source=source | {"model": "[/x] [red]a\x1b[2J"}, family="[bold]")
    print_tables(Bundle.open(bundle_copy))
    shown = capsys.readouterr().out
    assert "[/x] [red]a\ufffd[2J" in shown
    assert "[bold]" in shown


@pytest.mark.parametrize("path", ["../tokenizer.json", "/etc/hostname", "a/../../b"])
def test_path_out_of_the_folder_is_refused(bundle_copy: Path, path: str) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["files"][path] = manifest["files"]["tokenizer.json"]
    edit_manifest(bundle_copy, files=manifest["files"])
    with refused("manifest-invalid", "leaves the bundle folder"):
        Bundle.open(bundle_copy)


def test_newer_schema_and_other_folders_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    edit_manifest(bundle_copy, schema_version=99)
    with refused("manifest-too-new", 99):
        Bundle.open(bundle_copy)
    with refused("bundle-without-manifest"):
        Bundle.open(tmp_path)
    with refused("bundle-missing"):
        Bundle.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "keep", "found"),
    [
        (None, None, "divprune-58"),
        (None, 58, "divprune-58"),
        ("divprune", None, "divprune-58"),
        ("divprune", 58, "divprune-58"),
        ("divprune-58", None, "divprune-58"),
        ("divprune-58", 58, "divprune-58"),
        ("none", None, None),
        ("none", 576, None),
        (None, 576, None),
        ("divprune", 576, None),
    ],
)
def test_selector_is_found(demo_bundle: Path, name: str | None, keep: int | None, found: str | None) -> None:
    selector = Bundle.open(demo_bundle).selector(name, keep)
    assert (selector.id if selector else None) == found


@pytest.mark.parametrize(
    ("name", "keep", "told"),
    [
        ("divprune", 59, ("selector-not-in-bundle", "'divprune'", 59, "divprune-58, none", "--keep 59")),
        (None, 60, ("selector-not-in-bundle", "--selector divprune --keep 60")),
        ("divprun", None, ("selector-not-in-bundle", "did you mean 'divprune'")),
        ("uniform-58", None, ("selector-not-in-bundle", "'uniform-58'", "--selector uniform --keep 58")),
        ("uniform", None, ("selector-not-in-bundle", "'uniform'", "--selector uniform")),
        ("vtc-cls-29", None, ("selector-not-in-bundle", "--selector vtc-cls --keep 29")),
        ("uniform-9999", None, ("selector-not-in-bundle", "'uniform-9999'")),
        ("divprune-58", 57, ("keep-with-selector", 58, 57)),
        ("divprune-58", 576, ("keep-with-selector", 58, 576)),
        ("divprun", 576, ("selector-not-in-bundle", "did you mean 'divprune'")),
        ("none", 58, ("keep-with-selector", 576, 58)),
        (None, 0, ("keep-out-of-range", 0, "1 to 576")),
        (None, 577, ("keep-out-of-range", 577, "1 to 576")),
    ],
)
def test_unknown_selector_says_what_there_is(
    demo_bundle: Path, name: str | None, keep: int | None, told: tuple[Any, ...]
) -> None:
    with refused(*told):
        Bundle.open(demo_bundle).selector(name, keep)


def test_one_of_several_budgets_is_chosen_by_its_own_name(bundle_copy: Path) -> None:
    list(add_selectors(bundle_copy, "uniform", "8,9", force=False, verify=False))
    bundle = Bundle.open(bundle_copy)
    with refused("selector-ambiguous", "uniform-8", "uniform-9"):
        bundle.selector("uniform")
    for found in (bundle.selector("uniform", 8), bundle.selector("uniform-8")):
        assert found is not None and found.id == "uniform-8"


def test_unpruned_default(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, default_selector="none")
    bundle = Bundle.open(bundle_copy)
    assert bundle.selector() is None
    assert bundle.selector("divprune") == bundle.selector(None, 58) == bundle.manifest.selectors[0]
