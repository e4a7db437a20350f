"""OpenVINO on the same three ONNX graphs, with its own choice of kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.engines.engine import Clock, Engine, SpeedJob, Times, decode_ms, pixels, text_ids


def open_engine(job: SpeedJob) -> Engine:
    """Compile the graphs of a bundle in dialect ``portable``."""
    return OpenVino(job)


class OpenVino:
    """Latency hint, threads pinned to the job's number; the KV cache goes from output to input without a copy."""

    def __init__(self, job: SpeedJob) -> None:
        import onnx
        import onnx.inliner
        import openvino

        from divprune_edge.manifest import read_manifest

        self._openvino, self._job = openvino, job
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
        folder = Path(job.folder)
        self._manifest = read_manifest(folder)
        selector = self._manifest.selectors[0]
        # Its importer does not read model-local functions.
        inlined = onnx.inliner.inline_local_functions(onnx.load(folder / selector.file))
        self._vision, self._language = (
            core.compile_model(core.read_model(folder / file), "CPU", settings)
            for file in (self._manifest.vision_encoder.file, self._manifest.language_model.file)
        )
        self._selector = core.compile_model(
            core.read_model(inlined.SerializeToString()), "CPU", settings
        ).create_infer_request()
        self._vision_request = self._vision.create_infer_request()
        # Two requests take turns, so that what one has written the other reads where it is.
        self._requests = [self._language.create_infer_request() for _ in range(2)]
        self._pixels, self._text = pixels(job), text_ids(job)

    def versions(self) -> dict[str, str]:
        """See :class:`bench.engines.engine.Engine`."""
        return {"openvino": self._openvino.get_version()}

    def measure(self, visual: int) -> Times:
        """Encode, select, prefill, decode."""
        job = self._job
        clock = Clock()
        found = self._vision_request.infer({"pixels": self._pixels}, share_inputs=True, share_outputs=True)
        tokens = np.array(next(iter(found.values())))
        vision = clock.lap()
        if visual < job.all_visual:
            feed = {"visual_tokens": tokens, "valid": np.ones((1, job.all_visual), np.bool_)}
            tokens = np.array(self._selector.infer(feed)["kept_tokens"])
        select = clock.lap()
        ids = np.concatenate([self._text[:4], job.rows + np.arange(visual), self._text[4:]])
        info = self._manifest.language_model
        empty = np.zeros((1, info.kv_heads, 0, info.head_dim), np.float32)
        names = [name for group in info.groups for name in group.cache_tensors]
        cache: dict[str, Any] = {f"past_key_values.{name}": empty for name in names}
        length = turn = 0

        def step(new: Any) -> None:
            nonlocal cache, length, turn
            length += len(new)
            turn += 1
            request = self._requests[turn % 2]
            feed = {
                "input_ids": np.asarray(new, np.int64)[None],
                "visual_tokens": tokens,
                "logits_index": np.array([len(new) - 1], np.int64),
                "attention_mask": np.ones((1, length), np.bool_),
                "position_ids": np.arange(length - len(new), length, dtype=np.int64)[None],
                **cache,
            }
            request.infer(feed, share_inputs=True, share_outputs=True)
            cache = {f"past_key_values.{name}": request.get_tensor(f"present.{name}") for name in names}

        step(ids)
        prefill = clock.lap()
        decode = decode_ms(job, lambda token: step([token]))
        return {"vision": vision, "select": select, "prefill": prefill, "decode": decode}
