"""cuda-python 12.6, JetPack 6's, raises where the driver's library is missing instead of returning a status."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import NoReturn

import pytest
from raising import refused

from divprune_edge.models.tensorrt import TENSORRT
from divprune_edge.runtime.engines import cuda, facts


def missing() -> NoReturn:
    raise RuntimeError("Failed to dlopen libcuda.so.1")


@pytest.fixture(autouse=True)
def bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(cudaGetDeviceCount=missing)
    monkeypatch.setattr(facts, "import_cuda", lambda: made)
    monkeypatch.setattr(cuda, "import_cuda", lambda: made)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))


def test_the_facts_say_it() -> None:
    with refused("gpu-missing", "Failed to dlopen libcuda.so.1"):
        facts.device_facts(TENSORRT)


def test_the_device_says_it() -> None:
    with refused("cuda-unavailable", "Failed to dlopen libcuda.so.1"):
        cuda.CudaDevice()
