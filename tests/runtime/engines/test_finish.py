"""How TensorRT-RTX finishes an engine on the card, over ``fake_cuda``: what it is told, and what is kept of it."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from exporting import export, plan_of
from fake_cuda import FakeRuntime, FakeTensorRt, RuntimeConfig, Strategy
from fake_device import FakeEngines

from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import cuda

KEY = "a digest of it"


class Here:
    """A device over fakes, and the module that stands for TensorRT-RTX."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, edition: Edition) -> None:
        self.runtime = FakeRuntime()
        self.tensorrt = FakeTensorRt(self.runtime.device)
        monkeypatch.setattr(cuda, "import_cuda", lambda: self.runtime)
        monkeypatch.setitem(sys.modules, edition.module, self.tensorrt)
        self.device = cuda.CudaDevice(edition)

    @property
    def configs(self) -> list[RuntimeConfig]:
        return [one for one in self.tensorrt.contexts if isinstance(one, RuntimeConfig)]

    def start(self, plan: Any, *, varying: bool = False) -> RuntimeConfig:
        """Load an engine, make a context and let both go; return what the context was made with."""
        context = self.device.load(plan, "an engine", KEY).context(
            0, self.device.allocate(4096), varying=varying
        )
        del context
        gc.collect()
        return self.configs[-1]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch, TENSORRT_RTX)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tiny")
    export(plan_of(make_checkpoint(folder / "checkpoint"), keep=9, dialect="static"), folder / "bundle")
    return Bundle.open(folder / "bundle")


@pytest.fixture
def plan(bundle: Bundle) -> Any:
    return FakeEngines(bundle)(None, before=None).plans["vision_encoder"]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's folder for kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "divprune-edge" / "kernels"


def test_kernels_for_the_shapes_at_hand(here: Here, bundle: Bundle, kept: Path) -> None:
    """Before they are needed, but for prefill, whose shapes are many; no CUDA graphs but ours."""
    TensorRtBackend(bundle, here.device, FakeEngines(bundle), "tensorrt-rtx").load(bundle.selector())
    lazy = [one.dynamic_shapes_kernel_specialization_strategy for one in here.configs]
    assert lazy.count(Strategy.LAZY) == 1
    assert set(lazy) == {Strategy.LAZY, Strategy.EAGER}
    assert len(lazy) == len(here.tensorrt.contexts) == 4, "encoder, selector, prefill, decode"
    for one in here.configs:
        assert (one.cuda_graph_strategy, one.allocation) == (Strategy.DISABLED, Strategy.USER_MANAGED)
        assert one.cache is not None
    assert here.tensorrt.host_code == [False] * 3


def test_tensorrt_itself_finishes_nothing(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, plan: Any, kept: Path
) -> None:
    other = Here(monkeypatch, TENSORRT)
    other.device.load(plan, "an engine", KEY).context(0, other.device.allocate(4096))
    assert other.tensorrt.contexts == [Strategy.USER_MANAGED]
    assert not kept.exists()


def test_what_was_made_is_kept_for_the_next_start(here: Here, plan: Any, kept: Path) -> None:
    first, second = here.start(plan), here.start(plan)
    assert first.cache is not None
    assert first.cache.kernels == b""
    assert second.cache is not None
    assert second.cache.kernels == b"made "
    assert here.start(plan, varying=True).cache.kernels == b"", "other kernels than those of fixed shapes"  # type: ignore[union-attr]
    assert (kept / f"{KEY}.bin").read_bytes() == b"made made "
    assert sorted(path.name for path in kept.iterdir()) == [f"{KEY}-varying.bin", f"{KEY}.bin"]
    assert kept.stat().st_mode & 0o777 == 0o700, "it is code"


@pytest.mark.parametrize("obstacle", ["a folder", "no rights", "a file in the way"])
def test_a_cache_that_cannot_be_used_is_no_error(
    here: Here, plan: Any, kept: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a folder":
        (kept / f"{KEY}.bin").mkdir(parents=True)
    elif obstacle == "a file in the way":
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "mkdir", refuse)
    assert here.start(plan).cache is not None
    if obstacle != "no rights":
        assert [path for path in kept.parent.rglob("*") if path.is_file()] == (
            [] if kept.is_dir() else [kept]
        )


def test_a_user_without_a_home_keeps_nothing(here: Here, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    config = here.start(plan)
    assert config.cache is None
    assert config.cuda_graph_strategy is Strategy.DISABLED
