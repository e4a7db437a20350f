"""What keeps an engine from being opened: one sentence, exit code 2, and nothing deserialised.

The engines are TensorRT-RTX's; what is TensorRT's own is in test_opening_tensorrt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh
from plugins_emulation import write_library
from raising import refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.plugins.record import LIBRARY
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.fingerprint import Facts, fingerprint
from divprune_edge.runtime.engines.opening import Engines, open_engines
from divprune_edge.runtime.engines.store import read_record

RTX = "1.7.1.116"
Build = Any
Here = Any


def open_it(folder: Path, selector: str | None = None) -> Engines:
    bundle = Bundle.open(folder, "always")
    return open_engines(bundle, bundle.selector(selector), edition=TENSORRT_RTX)


@pytest.fixture(autouse=True)
def _nothing_is_deserialized(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening never hands a plan to TensorRT, whether it succeeds or not."""
    import tensorrt_rtx

    def deserialize(*_: object) -> None:
        raise AssertionError("a plan was handed to TensorRT")

    monkeypatch.setattr(tensorrt_rtx.Runtime, "deserialize_cuda_engine", deserialize)


def engines_of(bundle: Path) -> Path:
    return next(path for path in (bundle / "engines").iterdir() if path.is_dir())


def assert_refused(folder: Path, code: str, *values: object, selector: str | None = None) -> None:
    """Check that opening ends with this mistake, told in one sentence."""
    with refused(code, *values) as error:
        open_it(folder, selector)
    assert error.value.exit_code == 2
    sentence = str(error.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_engines_that_fit(built: Path, here: Here) -> None:
    engines = open_it(built)
    assert set(engines.plans) == {"vision_encoder", "language_model", "divprune-58"}
    for name, plan in engines.plans.items():
        info = engines.info[name]
        assert hashlib.sha256(bytes(plan)).hexdigest() == info.sha256
        assert bytes(plan) == (engines.folder / info.file).read_bytes()
    assert (engines.library, engines.kernel) == (None, False)
    assert engines.limits.max_prompt == 58 + PROMPT
    assert engines.device == here.facts


def test_without_pruning_no_selector_and_no_kernel(build: Build, bundle: Path, here: Here) -> None:
    build(bundle, selector="none")
    write_library(here.library)
    engines = open_it(bundle, "none")
    assert set(engines.plans) == {"vision_encoder", "language_model"}
    assert (engines.library, engines.kernel) == (None, False)


def test_our_kernel_in_the_place_of_the_selectors_engine(
    built: Path, here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX takes no plugins: the library's kernel is called between the engines, where it is built."""
    open_it(built)
    (warning,) = caplog.messages
    assert warning == (
        "The selection runs as a loop of TensorRT-RTX, which is many times slower than our kernel: build that with "
        "'python -m plugins build'."
    )
    caplog.clear()
    write_library(here.library)
    engines = open_it(built)
    assert set(engines.plans) == set(engines.info) == {"vision_encoder", "language_model"}
    assert engines.kernel
    assert engines.library is not None
    assert engines.library.path.parent == here.library
    assert caplog.messages == []


def test_a_library_that_is_not_what_was_built_is_refused(built: Path, here: Here) -> None:
    write_library(here.library, sha256="0" * 64)
    assert_refused(built, "plugin-changed", here.library / LIBRARY)


def test_a_selector_without_a_kernel_is_an_engine(build: Build, bundle: Path, here: Here) -> None:
    build(bundle, selector="uniform")
    write_library(here.library)
    engines = open_it(bundle, "uniform")
    assert "uniform-58" in engines.plans
    assert (engines.library, engines.kernel) == (None, False)


def test_what_was_checked_is_what_is_handed_on(built: Path) -> None:
    engines = open_it(built)
    before = bytes(engines.plans["vision_encoder"])
    path = engines.folder / engines.info["vision_encoder"].file
    path.with_name("other").write_bytes(b"exchanged")
    path.with_name("other").replace(path)
    assert bytes(engines.plans["vision_encoder"]) == before


def test_the_engines_of_this_device_among_several(build: Build, here: Here, bundle: Path) -> None:
    refresh(bundle, read_manifest(bundle), target=None)
    first = build(bundle, target="rtx4090").folder
    second = build(bundle, target="rtx5090").folder
    assert first != second
    assert open_it(bundle).folder == first
    here.change(sms=(120,))
    assert open_it(bundle).folder == second


def test_one_build_for_every_rtx_card(build: Build, here: Here, bundle: Path) -> None:
    """And for no other GPU, and no other TensorRT-RTX: its engines do not outlive a version."""
    refresh(bundle, read_manifest(bundle), target="rtx")
    folder = build(bundle, selector="none").folder
    for sm in (80, 86, 89, 120, 121):
        here.change(sms=(sm,))
        assert open_it(bundle, "none").folder == folder
    here.change(tensorrt="1.8.0.1")
    sides = (f"TensorRT-RTX {RTX}", "TensorRT-RTX 1.8.0.1")
    command = f"'python -m runtime build {bundle} --selector none'"
    assert_refused(bundle, "engines-unfit", bundle / "engines", *sides, command, selector="none")


def test_a_bundle_for_another_card(build: Build, here: Here, bundle: Path) -> None:
    """No build of it serves this one."""
    refresh(bundle, read_manifest(bundle), target="rtx4090")
    build(bundle, selector="none")
    here.change(sms=(120,))
    sides = ("sm_89", "sm_120", "GeForce RTX 4090 24GB")
    command = "'python -m export llava --model PATH/checkpoint --target NAME'"
    assert_refused(bundle, "engines-unfit", bundle / "engines", *sides, command, selector="none")


def test_there_are_none(here: Here, bundle: Path) -> None:
    command = f"python -m runtime build {bundle}"
    assert_refused(bundle, "engines-missing", f"'{bundle}'", "TensorRT-RTX", f"'{command}'")
    assert_refused(bundle, "engines-missing", f"'{command} --selector uniform-58'", selector="uniform")


def test_another_graph(built: Path) -> None:
    (built / "language_model.data").write_bytes(b"other weights")
    refresh(built, read_manifest(built))
    assert_refused(built, "engines-unfit", "'language_model'", "sha256")


def test_another_selector(built: Path) -> None:
    command = f"'python -m runtime build {built} --selector uniform-58'"
    assert_refused(built, "engines-unfit", "divprune-58", "'uniform-58'", command, selector="uniform-58")


def test_another_budget(built: Path) -> None:
    assert_refused(built, "engines-unfit", "58 visual tokens", 576, selector="none")


def test_engines_that_know_of_no_images_are_opened_all_the_same(built: Path) -> None:
    """Built before engines were for several images, and for prompts without one."""
    folder = engines_of(built)
    record = json.loads((folder / "engines.json").read_text())
    del record["facts"]["limits"]["images"]
    del record["asked"]["images"]
    record["facts"]["limits"]["kept"] = [58, 58, 58]
    older = folder.with_name(fingerprint(Facts.model_validate(record["facts"])))
    folder.rename(older)
    (older / "engines.json").write_text(json.dumps(record))
    limits = open_it(built).limits
    assert (limits.images, limits.kept) == (1, (58, 58, 58))


def test_of_several_the_closest_is_named(build: Build, here: Here, bundle: Path) -> None:
    refresh(bundle, read_manifest(bundle), target=None)
    build(bundle, target="rtx4090", selector="none")
    build(bundle, target="rtx5090", selector="uniform")
    here.change(sms=(120,))
    assert_refused(bundle, "engines-unfit", "uniform-58", "'divprune-58'")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "engines-file-changed"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "engines-file-changed"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "engines-file-changed"),
        (lambda path: path.write_bytes(b""), "engines-file-changed"),
        (lambda path: path.unlink(), "engines-file-unreadable"),
    ],
    ids=["truncated", "longer", "changed", "empty", "missing"],
)
@pytest.mark.parametrize("name", ["vision_encoder", "language_model", "divprune-58"])
def test_a_damaged_plan(built: Path, damage: Callable[[Path], object], code: str, name: str) -> None:
    path = engines_of(built) / f"{name}.plan"
    size = path.stat().st_size
    damage(path)
    sizes = [path.stat().st_size, size] if path.exists() and path.stat().st_size != size else []
    assert_refused(built, code, f"'{path}'", *sizes, f"'python -m runtime build {built} --force'")


def test_too_little_memory(built: Path, here: Here) -> None:
    here.change(free_memory=1 << 16)
    assert_refused(built, "gpu-memory-too-small", "activations 0", "1 MiB")


def test_a_dialect_that_is_not_for_tensorrt(here: Here, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "portable", "portable")
    assert_refused(folder, "dialect-not-for-tensorrt", f"'{folder}'", "'portable'", "'static'")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data.update(schema_version=1), "'schema_version'"),
        (lambda data: data["plans"]["vision_encoder"].update(file="../x"), "'../x'"),
        (lambda data: data["plans"]["vision_encoder"].update(file="/etc/passwd"), "'/etc/passwd'"),
        (lambda data: data["plans"].pop("vision_encoder"), "plans"),
        (lambda data: data["facts"].update(sms=[90]), "fingerprint"),
        (lambda data: data.clear(), "'facts'"),
    ],
)
def test_a_record_that_was_changed(built: Path, change: Callable[[Any], object], where: str) -> None:
    path = engines_of(built) / "engines.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert_refused(built, "engines-record-invalid", f"'{path}'", where)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"plans"'])
def test_a_record_that_cannot_be_read(built: Path, content: bytes) -> None:
    path = engines_of(built) / "engines.json"
    path.write_bytes(content)
    assert_refused(built, "engines-record-invalid", f"'{path}'", "--force")


def test_a_damaged_record_can_be_built_anew(build: Build, built: Path) -> None:
    (engines_of(built) / "engines.json").write_bytes(b"{")
    build(built, force=True)
    assert open_it(built).limits.max_prompt == 58 + PROMPT


def test_a_folder_under_another_name(built: Path) -> None:
    folder = engines_of(built)
    folder.rename(folder.with_name("0" * 16))
    actual = fingerprint(read_facts(built))
    assert_refused(built, "engines-record-invalid", actual, "0" * 16)


def read_facts(bundle: Path) -> Any:
    return Facts.model_validate(json.loads((engines_of(bundle) / "engines.json").read_text())["facts"])


def test_engines_do_not_disturb_the_bundle(built: Path) -> None:
    Bundle.open(built, "always")
    assert read_record(engines_of(built)).schema_version == 3


def test_a_selector_on_top_of_engines_that_are_loaded(build: Build, bundle: Path, here: Here) -> None:
    """Only its own engine is read, from the same build; memory that the loaded ones take is not asked for again."""
    build(bundle, selector="all")
    opened = Bundle.open(bundle, "always")
    loaded, selector = opened.manifest.selectors[:2]
    first = open_engines(opened, loaded, edition=TENSORRT_RTX)
    here.change(free_memory=0)
    second = open_engines(opened, selector, before=first, edition=TENSORRT_RTX)
    assert set(second.plans) == {selector.id}
    assert second.folder == first.folder


def test_a_selector_that_was_built_apart_is_refused(build: Build, bundle: Path) -> None:
    build(bundle, selector="none")
    opened = Bundle.open(bundle, "always")
    first = open_engines(opened, None, edition=TENSORRT_RTX)
    selector = opened.manifest.selectors[0]
    build(bundle, selector=selector.id)
    with refused("engines-built-apart") as error:
        open_engines(opened, selector, before=first, edition=TENSORRT_RTX)
    assert error.value.exit_code == 2


def test_a_folder_that_cannot_be_read_beside_one_that_can(build: Build, here: Here, built: Path) -> None:
    mine = engines_of(built)
    other = built / "engines" / ("0" * 16)
    other.mkdir()
    assert open_it(built).folder == mine
    refresh(built, read_manifest(built), target=None)
    here.change(sms=(120,))
    assert_refused(built, "engines-record-invalid", f"'{other / 'engines.json'}'")
    build(built, target="rtx5090")
    assert open_it(built).device.sms == (120,), "what the sentence says helps"


def test_the_command_repeats_the_build(build: Build, bundle: Path) -> None:
    asked = {
        "selector": "uniform, divprune-58",
        "max_prompt": 200,
        "workspace": 64 << 20,
        "optimization_level": 2,
    }
    folder = build(bundle, **asked).folder
    (folder / "uniform-58.plan").write_bytes(b"")
    command = (
        f"python -m runtime build {bundle} --selector uniform,divprune-58 --max-prompt 200 --workspace 64"
    )
    again = f"'{command} --optimization-level 2 --force'"
    assert_refused(bundle, "engines-file-changed", again, selector="uniform")
    assert build(bundle, **(asked | {"selector": "uniform,divprune-58"}), force=True).folder == folder
    assert "uniform-58" in open_it(bundle, "uniform").plans


def test_a_selector_beside_loaded_engines(build: Build, built: Path) -> None:
    opened = Bundle.open(built, "always")
    before = open_engines(opened, opened.selector(), edition=TENSORRT_RTX)
    build(built, selector="uniform")
    more = open_engines(opened, opened.selector("uniform"), before=before, edition=TENSORRT_RTX)
    assert set(more.plans) == {"uniform-58"}, "built later, around the same language model"
    build(built, selector="divprune-144")
    with refused("engines-built-apart"):
        open_engines(opened, opened.selector("divprune-144"), before=before, edition=TENSORRT_RTX)
