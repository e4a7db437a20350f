"""What keeps an engine from being opened: one sentence, exit code 2, and nothing deserialised."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh

from divprune_edge.errors import UserError
from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.plugins.record import LIBRARY, sha256
from divprune_edge.plugins.record import read_record as read_library_record
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.fingerprint import Facts, fingerprint
from divprune_edge.runtime.engines.opening import Engines, open_engines
from divprune_edge.runtime.engines.store import read_record

Build = Any
Here = Any


def open_it(folder: Path, selector: str | None = None) -> Engines:
    bundle = Bundle.open(folder, "always")
    return open_engines(bundle, bundle.selector(selector))


@pytest.fixture(autouse=True)
def _nothing_is_deserialized(here: Here) -> Iterator[None]:
    """Opening never hands a plan to TensorRT, whether it succeeds or not."""
    yield
    assert here.world.deserialized == len(here.world.built), "only the builder looked at its own plans"


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
    assert engines.library is not None
    assert engines.library.path.parent == here.library
    assert engines.limits.max_prompt == 58 + PROMPT
    assert engines.device == here.facts


def test_without_pruning_no_selector_and_no_plugin(build: Build, bundle: Path, here: Here) -> None:
    build(bundle, selector="none")
    shutil.rmtree(here.library)
    engines = open_it(bundle, "none")
    assert set(engines.plans) == {"vision_encoder", "language_model"}
    assert engines.library is None


def test_what_was_checked_is_what_is_handed_on(built: Path) -> None:
    engines = open_it(built)
    before = bytes(engines.plans["vision_encoder"])
    path = engines.folder / engines.info["vision_encoder"].file
    path.with_name("other").write_bytes(b"exchanged")
    path.with_name("other").replace(path)
    assert bytes(engines.plans["vision_encoder"]) == before


def test_the_engines_of_this_device_among_several(build: Build, here: Here, bundle: Path) -> None:
    first = build(bundle).folder
    here.change(sms=(90,), shared_memory=False)
    second = build(bundle).folder
    assert first != second
    assert open_it(bundle).folder == second
    here.change(sms=(87,))
    assert open_it(bundle).folder == first


def test_there_are_none(here: Here, bundle: Path) -> None:
    assert refusal(bundle) == (
        f"'{bundle}' has no engines: build them on this device with 'python -m runtime build {bundle}'."
    )
    assert f"'python -m runtime build {bundle} --selector uniform-58'" in refusal(bundle, "uniform")


@pytest.mark.parametrize(
    ("facts", "sides"),
    [
        ({"sms": (90,)}, "were built with sm_87, but this is sm_90"),
        ({"tensorrt": "10.3.1"}, "were built with TensorRT 10.3.0, but this is TensorRT 10.3.1"),
        ({"cuda": "12.8"}, "were built with CUDA 12.6, but this is CUDA 12.8"),
    ],
)
def test_another_device(built: Path, here: Here, facts: dict[str, Any], sides: str) -> None:
    here.change(**facts)
    assert refusal(built) == (
        f"The engines in '{built / 'engines'}' {sides}: build them for this device with "
        f"'python -m runtime build {built}'."
    )


def test_another_graph(built: Path) -> None:
    (built / "language_model.data").write_bytes(bytes(4999) + b"\x01")
    refresh(built, read_manifest(built))
    assert "were built from another graph of 'language_model' (sha256 " in refusal(built)


def test_another_selector(built: Path) -> None:
    sentence = refusal(built, "uniform-58")
    assert "were built with divprune-58, but not with 'uniform-58'" in sentence
    assert f"'python -m runtime build {built} --selector uniform-58'" in sentence


def test_another_budget(built: Path) -> None:
    assert "were built for 58 visual tokens, but 576 are asked for" in refusal(built, "none")


def test_of_several_the_closest_is_named(build: Build, here: Here, bundle: Path) -> None:
    build(bundle)
    here.change(tensorrt="10.3.9")
    build(bundle, selector="uniform")
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


def test_the_plugin_is_missing(built: Path, here: Here) -> None:
    shutil.rmtree(here.library)
    assert "There is no plugin library at" in refusal(built)
    assert "'python -m plugins build'" in refusal(built)


def test_another_plugin(built: Path, here: Here) -> None:

    path = here.library / LIBRARY
    path.write_bytes(b"another")
    dataclasses.replace(read_library_record(here.library), sha256=sha256(path)).write(here.library)
    sentence = refusal(built)
    assert "were built with another plugin library (sha256 " in sentence
    assert sha256(path)[:12] in sentence
    assert sentence.endswith(f"'python -m runtime build {built}'.")


def test_too_little_memory(built: Path, here: Here) -> None:
    here.change(free_memory=1 << 16)
    sentence = refusal(built)
    assert (
        "The engines take 1 MiB (weights 1, activations 1, KV cache 1), but the GPU has 1 MiB free"
        in sentence
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
    first = open_engines(opened, loaded)
    here.change(free_memory=0)
    second = open_engines(opened, selector, before=first)
    assert set(second.plans) == {selector.id}
    assert second.folder == first.folder


def test_a_selector_that_was_built_apart_is_refused(build: Build, bundle: Path) -> None:
    build(bundle, selector="none")
    opened = Bundle.open(bundle, "always")
    first = open_engines(opened, None)
    selector = opened.manifest.selectors[0]
    build(bundle, selector=selector.id)
    with pytest.raises(
        UserError, match=r"were built apart from those in .*: build them together with"
    ) as error:
        open_engines(opened, selector, before=first)
    assert error.value.exit_code == 2


def test_a_folder_that_cannot_be_read_beside_one_that_can(build: Build, here: Here, built: Path) -> None:
    mine = engines_of(built)
    other = built / "engines" / ("0" * 16)
    other.mkdir()
    assert open_it(built).folder == mine
    here.change(sms=(90,))
    assert f"'{other / 'engines.json'}' cannot be read" in refusal(built)
    build(built)
    assert open_it(built).device.sms == (90,), "what the sentence says helps"


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
    before = open_engines(opened, opened.selector())
    build(built, selector="uniform")
    more = open_engines(opened, opened.selector("uniform"), before=before)
    assert set(more.plans) == {"uniform-58"}, "built later, around the same language model"
    build(built, selector="divprune-144")
    with pytest.raises(UserError, match=r"were built apart .* build them together"):
        open_engines(opened, opened.selector("divprune-144"), before=before)
