"""What opening TensorRT's engines has of its own: the plugin, the driver's CUDA, and a version of its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import refresh
from raising import refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.tensorrt import TENSORRT, Edition
from divprune_edge.plugins.record import LIBRARY, sha256
from divprune_edge.plugins.record import read_record as read_library_record
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.fingerprint import fingerprint
from divprune_edge.runtime.engines.opening import Engines, open_engines
from divprune_edge.runtime.engines.store import read_record

Build = Any
Here = Any


@pytest.fixture
def edition() -> Edition:
    return TENSORRT


def open_it(folder: Path, selector: str | None = None) -> Engines:
    bundle = Bundle.open(folder, "always")
    return open_engines(bundle, bundle.selector(selector))


@pytest.fixture(autouse=True)
def _nothing_is_deserialized(here: Here) -> Iterator[None]:
    """Opening never hands a plan to TensorRT, whether it succeeds or not."""
    yield
    assert here.world.deserialized == len(here.world.built), "only the builder looked at its own plans"


def test_engines_that_fit(built: Path, here: Here) -> None:
    engines = open_it(built)
    assert set(engines.plans) == {"vision_encoder", "language_model", "divprune-58"}
    assert engines.library is not None
    assert engines.library.path.parent == here.library
    assert not engines.kernel, "the plugin is in the engine"
    assert engines.device == here.facts


def test_without_pruning_no_selector_and_no_plugin(build: Build, bundle: Path, here: Here) -> None:
    build(bundle, selector="none")
    shutil.rmtree(here.library)
    engines = open_it(bundle, "none")
    assert set(engines.plans) == {"vision_encoder", "language_model"}
    assert engines.library is None


@pytest.mark.parametrize(
    ("facts", "sides"),
    [
        ({"sms": (90,)}, ("sm_87", "sm_90")),
        ({"tensorrt": "10.3.1"}, ("TensorRT 10.3.0", "TensorRT 10.3.1")),
        ({"cuda": "12.8"}, ("CUDA 12.6", "CUDA 12.8")),
    ],
)
def test_another_device(built: Path, here: Here, facts: dict[str, Any], sides: tuple[str, str]) -> None:
    here.change(**facts)
    with refused("engines-unfit", built / "engines", *sides, f"'python -m runtime build {built}'"):
        open_it(built)


def test_engines_of_the_other_edition_do_not_count(built: Path) -> None:
    (record,) = (built / "engines").glob("*/engines.json")
    info = read_record(record.parent)
    facts = info.facts.model_copy(update={"edition": "tensorrt-rtx"})
    record.write_text(info.model_copy(update={"facts": facts}).model_dump_json())
    record.parent.rename(record.parent.with_name(fingerprint(facts)))
    with refused("engines-missing", f"'{built}'", f"'python -m runtime build {built}'"):
        open_it(built)


def test_a_bundle_for_an_rtx_card(built: Path) -> None:
    refresh(built, read_manifest(built), target="rtx4090")
    with refused(
        "backend-with-target", f"'{built}'", "GeForce RTX 4090 24GB", "TensorRT-RTX", "--backend tensorrt-rtx"
    ):
        open_it(built)


def test_the_plugin_is_missing(built: Path, here: Here) -> None:
    shutil.rmtree(here.library)
    with refused("plugin-missing", here.library / LIBRARY, "'python -m plugins build'"):
        open_it(built)


def test_another_plugin(built: Path, here: Here) -> None:
    path = here.library / LIBRARY
    before = sha256(path)
    path.write_bytes(b"another")
    dataclasses.replace(read_library_record(here.library), sha256=sha256(path)).write(here.library)
    digests = (before[:12], sha256(path)[:12])
    with refused("engines-of-other-plugin", f"'{path}'", *digests, f"'python -m runtime build {built}'"):
        open_it(built)
