"""What a decode step of backend ``tensorrt`` costs the host: everything but the device itself.

Needs neither GPU nor TensorRT: the engine is one that does nothing at once. Of LLaVA-1.5-7B's sizes unless told
otherwise: ``python -m bench.decode_overhead``. What is left out is what CUDA's own calls take: one launch, one wait.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import numpy as np

from divprune_edge.manifest import VISUAL_TOKENS, Dialect, LanguageInfo, TensorInfo
from divprune_edge.runtime.backends.tensorrt_language import TensorRtLanguage
from divprune_edge.runtime.engines.pool import Pool
from divprune_edge.runtime.sampling import Sampler

VISUAL, WIDTH = 58, 4096


def main() -> None:
    """Measure and print a line per dialect."""
    parser = argparse.ArgumentParser(prog="python -m bench.decode_overhead", description=__doc__)
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32064)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    for dialect in ("static", "decomposed"):
        info = language_info(dialect, arguments.capacity, arguments.vocabulary, arguments.layers)
        step, sampled, prefill = measure(info, arguments.steps)
        print(
            f"{dialect:10}: a decode step {median(step):.0f} us (p90 {quantiles(step, n=10)[8]:.0f}), with greedy "
            f"sampling {median(sampled):.0f} us; a prefill of 128 ids {median(prefill):.0f} us"
        )


def measure(info: LanguageInfo, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Return microseconds of decode steps, of decode steps with sampling, and of prefills."""
    device = Nothing()
    model = TensorRtLanguage(device, device, info, *info.groups)
    visual = Pool(device).take((1, VISUAL, WIDTH), np.float16)
    model.reserve(device.allocate(1))
    sampler = Sampler(forbidden=(0,))
    step, sampled, prefill = [], [], []
    session = model.session(1)
    slot = session.add(visual)
    for _ in range(steps):
        if session.length(slot) + 130 > info.positions:
            session.truncate(slot, 0)
        started = time.perf_counter()
        session.extend(slot, range(1, 129))
        prefilled = time.perf_counter()
        prediction = session.step({slot: 5})[slot]
        stepped = time.perf_counter()
        sampler.next(prediction)
        ended = time.perf_counter()
        prefill.append(1e6 * (prefilled - started))
        step.append(1e6 * (stepped - prefilled))
        sampled.append(1e6 * (ended - prefilled))
    return step[1:], sampled[1:], prefill[1:]


def language_info(dialect: Dialect, capacity: int, vocabulary: int, layers: int) -> LanguageInfo:
    """Return what a manifest would say of a 7B language model with a float16 cache."""
    own = {
        "static": [
            ("attention_mask", "bool", ("batch", 1, "seq", capacity)),
            ("write_indices", "int64", ("batch",)),
        ],
        "decomposed": [
            ("cache_mask", "bool", ("batch", 1, 1, capacity)),
            ("new_mask", "bool", ("batch", 1, "seq", "seq")),
        ],
    }[dialect]
    common = [
        ("input_ids", "int64", ("batch", "seq")),
        ("visual_tokens", "float16", ("batch", "visual", WIDTH)),
        ("logits_index", "int64", ("batch",)),
        ("position_ids", "int64", ("batch", "seq")),
    ]
    inputs = tuple(TensorInfo(name=n, dtype=t, shape=s) for n, t, s in [*common, *own])  # type: ignore[arg-type]
    return LanguageInfo(
        file="language_model.onnx",
        inputs=inputs,
        outputs=(TensorInfo(name="logits", dtype="float32", shape=("batch", vocabulary)),),
        precision="fp16",
        dialect=dialect,
        layers=layers,
        kv_heads=32,
        head_dim=128,
        cache_dtype="float16",
        embedding_rows=vocabulary,
        vocabulary=vocabulary,
        context=4096,
        capacity=capacity,
    )


class Nothing:
    """A device, an engine and a context that do nothing; memory is the host's, and only page-locked memory is real."""

    name, profiles, scratch_bytes, names = "nothing", 2, 1, ()

    def free_bytes(self) -> int:
        """Enough."""
        return 1 << 40

    def allocate(self, nbytes: int) -> Any:
        """Return an address that nobody reads."""
        return _Memory(1 << 20, nbytes)

    def pinned(self, nbytes: int) -> Any:
        """Return memory that the host writes."""
        return _Memory(1 << 20, nbytes, np.zeros(nbytes, np.uint8))

    def clear(self, *_: Any) -> None:
        """Also for what follows."""

    def upload(self, *_: Any) -> None:
        """Nothing."""

    download = upload_pieces = download_pieces = append_rows = set_shape = set_address = upload
    enqueue = launch = synchronize = upload

    def capture(self, work: Callable[[], None]) -> Any:
        """Do the work, as a capture does."""
        work()
        return self

    def limits(self, name: str, profile: int) -> Any:
        """Everything fits."""
        if name == VISUAL_TOKENS:
            return ((1, 1, 1), (1, VISUAL, WIDTH))
        return ((1,) * 4, (1, 1, 256, 256) if name.endswith("mask") else (1, 256))

    def context(self, *_: Any, **__: Any) -> Any:
        """Return itself."""
        return self

    def load(self, *_: Any) -> Any:
        """Return itself."""
        return self


class _Memory:
    def __init__(self, address: int, nbytes: int, array: Any = None) -> None:
        self.address, self.nbytes, self.array = address, nbytes, array


if __name__ == "__main__":
    main()
