"""What keeps an engine from being opened: one sentence, exit code 2, and nothing deserialised.

The engines are TensorRT-RTX's; what is TensorRT's own is in test_opening_tensorrt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh
from plugins_emulation import write_library
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.tensorrt import TENSORRT_RTX
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


def refusal(folder: Path, selector: str | None = None) -> str:
    """Return the sentence with which opening ends."""
    with pytest.raises(UserError) as error:
        open_it(folder, selector)
    assert error.value.exit_code == 2
    sentence = str(error.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


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
    assert "is not the file that was built" in refusal(built)


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
    assert refusal(bundle, "none") == (
        f"The engines in '{bundle / 'engines'}' were built with TensorRT-RTX {RTX}, but this is TensorRT-RTX 1.8.0.1: "
        f"build them for this device with 'python -m runtime build {bundle} --selector none'."
    )


def test_a_bundle_for_another_card(build: Build, here: Here, bundle: Path) -> None:
    """No build of it serves this one."""
    refresh(bundle, read_manifest(bundle), target="rtx4090")
    build(bundle, selector="none")
    here.change(sms=(120,))
    assert refusal(bundle, "none") == (
        f"The engines in '{bundle / 'engines'}' were built with sm_89, but this is sm_120: the bundle was made for "
        "GeForce RTX 4090 24GB, so export for this device with 'python -m export llava --model PATH/checkpoint "
        "--target NAME'."
    )


def test_there_are_none(here: Here, bundle: Path) -> None:
    assert refusal(bundle) == (
        f"'{bundle}' has no engines for TensorRT-RTX: build them with 'python -m runtime build {bundle}'."
    )
    assert f"'python -m runtime build {bundle} --selector uniform-58'" in refusal(bundle, "uniform")


def test_another_graph(built: Path) -> None:
    (built / "language_model.data").write_bytes(b"other weights")
    refresh(built, read_manifest(built))
    assert "were built from another graph of 'language_model' (sha256 " in refusal(built)


def test_another_selector(built: Path) -> None:
    sentence = refusal(built, "uniform-58")
    assert "were built with divprune-58, but not with 'uniform-58'" in sentence
    assert f"'python -m runtime build {built} --selector uniform-58'" in sentence


def test_another_budget(built: Path) -> None:
    assert "were built for up to 58 visual tokens, but 576 are asked for" in refusal(built, "none")


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
    assert "were built with uniform-58, but not with 'divprune-58'" in refusal(bundle)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"has \d+ bytes, but engines.json states \d+",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            r"has \d+ bytes, but engines.json states \d+",
        ),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "was changed after it was built"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["truncated", "longer", "changed", "empty", "missing"],
)
@pytest.mark.parametrize("name", ["vision_encoder", "language_model", "divprune-58"])
def test_a_damaged_plan(built: Path, damage: Callable[[Path], object], sentence: str, name: str) -> None:
    path = engines_of(built) / f"{name}.plan"
    damage(path)
    told = refusal(built)
    assert re.search(rf"'{re.escape(str(path))}' {sentence}", told), told
    assert told.endswith(f"build the engines again with 'python -m runtime build {built} --force'.")


def test_too_little_memory(built: Path, here: Here) -> None:
    here.change(free_memory=1 << 16)
    assert re.search(
        r"The engines take \d+ MiB \(weights \d+, activations 0, KV cache \d\), but the GPU has 1 MiB free",
        refusal(built),
    )


def test_a_dialect_that_is_not_for_tensorrt(here: Here, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "portable", "portable")
    assert "in dialect 'portable', but TensorRT needs 'static'" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data.update(schema_version=1), "does not fit the schema at 'schema_version'"),
        (lambda data: data["plans"]["vision_encoder"].update(file="../x"), "is not a plain file name"),
        (lambda data: data["plans"]["vision_encoder"].update(file="/etc/passwd"), "is not a plain file name"),
        (lambda data: data["plans"].pop("vision_encoder"), "the plans are not those of the facts"),
        (lambda data: data["facts"].update(sms=[90]), "but lies in"),
        (lambda data: data.clear(), "does not fit the schema at 'facts'"),
    ],
)
def test_a_record_that_was_changed(built: Path, change: Callable[[Any], object], sentence: str) -> None:
    path = engines_of(built) / "engines.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert sentence in refusal(built)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"plans"'])
def test_a_record_that_cannot_be_read(built: Path, content: bytes) -> None:
    path = engines_of(built) / "engines.json"
    path.write_bytes(content)
    assert f"'{path}' " in refusal(built)
    assert "--force'" in refusal(built)


def test_a_damaged_record_can_be_built_anew(build: Build, built: Path) -> None:
    (engines_of(built) / "engines.json").write_bytes(b"{")
    build(built, force=True)
    assert open_it(built).limits.max_prompt == 58 + PROMPT


def test_a_folder_under_another_name(built: Path) -> None:
    folder = engines_of(built)
    folder.rename(folder.with_name("0" * 16))
    actual = fingerprint(read_facts(built))
    assert f"states facts with the fingerprint {actual}, but lies in {'0' * 16}" in refusal(built)


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
    assert f"'{other / 'engines.json'}' cannot be read" in refusal(built)
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
    assert refusal(bundle, "uniform").endswith(f"again with '{command} --optimization-level 2 --force'.")
    again = build(bundle, **(asked | {"selector": "uniform,divprune-58"}), force=True)
    assert again.folder == folder
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
