"""This project's runtime on one of its bundles."""

from __future__ import annotations

import numpy as np

from bench.engines.engine import Clock, Engine, SpeedJob, Times, decode_ms, pixels, text_ids
from divprune_edge.processing.image_input import ImageInput


def open_engine(job: SpeedJob) -> Engine:
    """Load a bundle."""
    return Ours(job)


class Ours:
    """The ONNX Runtime backend."""

    def __init__(self, job: SpeedJob) -> None:
        from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
        from divprune_edge.runtime.bundle import Bundle
        from divprune_edge.runtime.vision import Vision

        self._job = job
        self._bundle = Bundle.open(job.folder)
        self._backend = OnnxRuntimeBackend(self._bundle, "cpu", job.threads)
        self._vision = Vision(self._bundle, self._backend)
        seen = pixels(job)
        self._image, self._text = ImageInput(seen, seen.shape[1:3]), text_ids(job)

    def versions(self) -> dict[str, str]:
        """See :class:`bench.engines.engine.Engine`."""
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}

    def measure(self, visual: int) -> Times:
        """Encode, select, prefill, decode."""
        job, times, clock = self._job, {}, Clock()
        selector = self._bundle.selector(None, visual)
        seen = self._vision.see([self._image], selector, lambda stage: times.update({stage: clock.lap()}))
        ids = np.concatenate([self._text[:4], job.rows + np.arange(visual), self._text[4:]])
        session = self._backend.session()
        slot = session.add(seen.tokens)
        session.extend(slot, ids.tolist())
        times["prefill"] = clock.lap()
        return {**times, "decode": decode_ms(job, lambda token: session.step({slot: token})[slot])}
