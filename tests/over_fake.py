"""A pipeline whose TensorRT is the stand-in, over a fake device."""

from __future__ import annotations

from typing import Any

import pytest
from fake_device import FakeDevice, FakeEngines

from divprune_edge import Pipeline
from divprune_edge.runtime import pipeline as pipelines
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle


def over_fake(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, device: FakeDevice | None = None, **engines: Any
) -> tuple[Pipeline, FakeDevice]:
    """Return a pipeline and its device; ``engines`` are arguments of :class:`FakeEngines`."""
    device = device or FakeDevice()
    opened = FakeEngines(bundle, **engines)
    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "open_backend", lambda *_: TensorRtBackend(bundle, device, opened))
        return Pipeline(bundle, backend="tensorrt"), device
