"""Questions answered per second, several at once against one by one, on any bundle.

Every round asks the same questions one by one and in batches, so that a drift of the machine hits both. Prompts are
random ids of slightly different lengths; every answer has the same number of tokens, so that both do the same work.
On a machine with other work, ``--processor-time --threads 1`` counts what this process alone used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from divprune_edge.processing.image_input import ImageInput
from divprune_edge.runtime.backends import DeviceTensor
from divprune_edge.runtime.pipeline import Pipeline

STAGES = ("vision and selection", "prefill", "decode")


def main() -> None:
    """Measure and print one line per batch and stage."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", default="4,8", help="questions at once")
    parser.add_argument("--text", type=int, default=64, help="text tokens of the shortest prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-vision", action="store_true", help="random visual tokens")
    parser.add_argument("--processor-time", action="store_true", help="instead of the clock's")
    arguments = parser.parse_args()
    bench = _Bench(arguments)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    times: dict[tuple[int, bool], list[list[float]]] = {}
    for turn in range(arguments.rounds + 1):
        for size in sizes:
            for together in (False, True):
                measured = bench.together(size) if together else bench.one_by_one(size)
                if turn:
                    times.setdefault((size, together), []).append(measured)
    print("| questions | stage | one by one, ms | at once, ms | ratio |\n|---|---|---|---|---|")
    for size in sizes:
        alone, batch = (np.array(times[size, together]) for together in (False, True))
        rows = [*((name, alone[:, i], batch[:, i]) for i, name in enumerate(STAGES))]
        rows.append(("in all", alone.sum(axis=1), batch.sum(axis=1)))
        for name, a, b in rows:
            # The ratio of each round, then its median: both halves of a round saw the same machine.
            print(f"| {size} | {name} | {median(a):,.0f} | {median(b):,.0f} | {median(a / b):.2f}x |")


class _Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._pipeline = Pipeline(arguments.bundle, threads=arguments.threads)
        self._backend = self._pipeline.backend
        self._text, self._tokens = arguments.text, arguments.tokens
        self._sees = not arguments.no_vision
        self._clock = time.process_time if arguments.processor_time else time.perf_counter
        self._random = np.random.default_rng(0)

    def one_by_one(self, size: int) -> list[float]:
        """Return the milliseconds of each stage, summed over the questions."""
        return np.sum([self._run(1, first) for first in range(size)], axis=0).tolist()

    def together(self, size: int) -> list[float]:
        """Return the milliseconds of each stage."""
        return self._run(size, 0)

    def _see(self, size: int) -> DeviceTensor:
        vision = self._pipeline.bundle.manifest.vision_encoder
        if not self._sees:
            shape = (size, self._pipeline.visual_tokens, vision.width)
            return self._backend.to_device(self._random.standard_normal(shape).astype(np.float32))
        pixels = (1, vision.image_height, vision.image_width, 3)
        images = [
            ImageInput(self._random.integers(0, 256, pixels, np.uint8), pixels[1:3]) for _ in range(size)
        ]
        return self._pipeline.vision.see(images, self._pipeline.selector).tokens

    def _run(self, size: int, first: int) -> list[float]:
        backend, rows = self._backend, self._pipeline.bundle.manifest.language_model.embedding_rows
        times = [self._clock()]
        kept = self._see(size)
        times.append(self._clock())
        keep = self._pipeline.visual_tokens
        visual = range(rows, rows + keep)
        prompts = [[5] * 4 + [*visual] + [7] * (self._text - 4 + 2 * (first + i)) for i in range(size)]
        session, values = backend.session(size), backend.to_host(kept)
        each = values.reshape(size, 1, keep, -1)
        slots = [session.add(backend.to_device(tokens)) for tokens in each]
        for slot, prompt in zip(slots, prompts, strict=True):
            session.extend(slot, prompt)
        times.append(self._clock())
        for _ in range(self._tokens - 1):
            session.step(dict.fromkeys(slots, 9))
        times.append(self._clock())
        return (1e3 * np.diff(times)).tolist()


if __name__ == "__main__":
    main()
