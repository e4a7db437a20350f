"""Devices that do not exist, with a TensorRT that parses and builds: TensorRT-RTX, also under TensorRT's name."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import export_demo, refresh
from plugins_emulation import need_rtx, write_library

from divprune_edge.manifest import read_manifest
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.plugins import loader
from divprune_edge.plugins.record import LIBRARY
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import builder, opening, target
from divprune_edge.runtime.engines.facts import DeviceFacts

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
RTX = "1.7.1.116"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """TensorRT-RTX warns of what Polygraphy does for the sake of TensorRT, as measuring kernels."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


class Here:
    """This device, and the folder of its plugin library: an Orin with TensorRT 10.3, or a GeForce RTX 4090.

    ``world`` is what TensorRT was told, where it is the stand-in.
    """

    def __init__(self, edition: Edition, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library, self.world = library, None
        self._monkeypatch = monkeypatch
        orin = edition is TENSORRT
        self.facts = DeviceFacts(
            edition=edition,
            sms=(87,) if orin else (89,),
            cuda="12.6" if orin else None,
            tensorrt=RTX,
            shared_memory=orin,
            free_memory=8 * GIB,
            host_memory=9 * GIB,
        )
        if orin:
            write_library(library)
            self.update("10.3.0")

    def change(self, **facts: Any) -> None:
        self.facts = dataclasses.replace(self.facts, **facts)

    def update(self, version: str) -> None:
        """Install another TensorRT."""
        from fake_tensorrt import World, install

        self.world: Any = World(version)
        install(self.world, self._monkeypatch)
        forget_builder()
        self.change(tensorrt=version)


def forget_builder() -> None:
    """A process builds with one TensorRT; that of the tests begins anew."""
    package = importlib.import_module("divprune_edge.runtime.engines")
    vars(package).pop("compile", None)
    for name in list(sys.modules):
        if name == f"{package.__name__}.compile" or name.split(".")[0] == "polygraphy":
            del sys.modules[name]


class Recorder:
    """A report that keeps what it is told; a test may do something at every step."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.on_step: Callable[[], None] = lambda: None

    def begin(self, engine: str, at: int, of: int) -> None:
        self.events.append(("begin", engine, at, of))

    def done(self, engine: str, seconds: float, size: int, *, reused: bool) -> None:
        self.events.append(("done", engine, reused))

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        self.events.append(("phase", name, parent, steps))

    def step(self, name: str, at: int) -> None:
        self.events.append(("step", name, at))
        self.on_step()

    def finished(self, name: str) -> None:
        self.events.append(("finished", name))

    def engines(self, kind: str = "done") -> list[str]:
        return [event[1] for event in self.events if event[0] == kind]


@pytest.fixture
def edition() -> Edition:
    """The edition that a test is about: the one that is real here, unless it says otherwise."""
    return TENSORRT_RTX


@pytest.fixture
def here(edition: Edition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """A device of the edition."""
    need_rtx()
    # What a build says of its edition ends with the test.
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    forget_builder()
    (tmp_path / "library").mkdir()
    made = Here(edition, tmp_path / "library", monkeypatch)
    for module in (target, opening):
        monkeypatch.setattr(module, "device_facts", lambda edition: made.facts)
    for module in (builder, opening):
        monkeypatch.setattr(
            module, "find_library", lambda given=None: loader.find_library(given or made.library)
        )
    monkeypatch.setattr(opening, "default_path", lambda: made.library / LIBRARY)
    yield made
    forget_builder()


Exported = Callable[[str], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The demo checkpoint in a dialect, with four selectors; not to be changed."""

    @cache
    def get(dialect: str) -> Path:
        return export_demo(tmp_path_factory.mktemp("exported") / dialect, dialect)

    return get


@pytest.fixture
def bundle(exported: Exported, edition: Edition, tmp_path: Path) -> Path:
    """A bundle in dialect ``decomposed``, made for an RTX 4090 or for no target."""
    folder = copy_of(exported("decomposed"), tmp_path / "bundle")
    refresh(folder, read_manifest(folder), target="rtx4090" if edition is TENSORRT_RTX else None)
    return folder


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


@pytest.fixture(scope="session")
def shelf() -> dict[str, Path]:
    """Engines of the default selector by edition, built once."""
    return {}


@pytest.fixture
def built(
    build: Build,
    bundle: Path,
    edition: Edition,
    shelf: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle with engines for its default selector."""
    if edition.name in shelf:
        copy_of(shelf[edition.name], bundle / "engines")
    else:
        build(bundle)
        shelf[edition.name] = copy_of(bundle / "engines", tmp_path_factory.mktemp("engines") / edition.name)
    return bundle


def copy_of(folder: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, target))
