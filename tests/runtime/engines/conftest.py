"""A device that does not exist, with a TensorRT that builds nothing (``fake_tensorrt``)."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle
from fake_tensorrt import World, install
from plugins_emulation import write_library

from divprune_edge.plugins import loader
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import builder, opening, target
from divprune_edge.runtime.engines.edition import TENSORRT
from divprune_edge.runtime.engines.facts import DeviceFacts

GIB = 1 << 30


class Here:
    """This device, as the tests want it to be, and its plugin library."""

    def __init__(self, world: World, library: Path) -> None:
        self.world = world
        self.library = library
        self.facts = DeviceFacts(
            edition=TENSORRT,
            sms=(87,),
            cuda="12.6",
            tensorrt=world.version,
            shared_memory=True,
            free_memory=8 * GIB,
            host_memory=9 * GIB,
        )

    def change(self, **facts: Any) -> None:
        self.facts = dataclasses.replace(self.facts, **facts)


class Recorder:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def begin(self, engine: str, at: int, of: int) -> None:
        self.events.append(("begin", engine, at, of))

    def done(self, engine: str, seconds: float, size: int, *, reused: bool) -> None:
        self.events.append(("done", engine, reused))

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        self.events.append(("phase", name, parent, steps))

    def step(self, name: str, at: int) -> None:
        self.events.append(("step", name, at))

    def finished(self, name: str) -> None:
        self.events.append(("finished", name))

    def engines(self, kind: str = "done") -> list[str]:
        return [event[1] for event in self.events if event[0] == kind]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """An Orin with TensorRT 10.3 and a plugin library of its own."""
    world = World()
    install(world, monkeypatch)
    folder = tmp_path / "library"
    folder.mkdir()
    made = Here(world, write_library(folder))
    # What a build says of the edition ends with the test.
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    for module in (target, opening):
        monkeypatch.setattr(module, "device_facts", lambda edition: made.facts)
    for module in (builder, opening):
        monkeypatch.setattr(
            module, "find_library", lambda given=None: loader.find_library(given or made.library)
        )
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle in dialect ``decomposed``."""
    return make_bundle(tmp_path / "bundle")


Build = Callable[..., builder.Built]


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def build(here: Here, report: Recorder) -> Build:
    """Build the engines of a folder: ``build(folder, selector="all")``."""

    def call(folder: Path, **options: Any) -> builder.Built:
        return builder.build_engines(Bundle.open(folder, "always"), builder.Options(**options), report)

    return call


@pytest.fixture
def built(build: Build, bundle: Path) -> Path:
    """A bundle with engines for its default selector."""
    build(bundle)
    return bundle


def copy_of(folder: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, target))
