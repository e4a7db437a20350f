"""Questions answered per second, several at once against one by one, on any bundle.

Every round asks the same questions one by one and in batches, so that a drift of the machine hits both. Prompts are
random ids of slightly different lengths; every answer has the same number of tokens, so that both do the same work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import numpy as np

from bench.engines.base import Clock
from divprune_edge.runtime.backends import BatchBackend
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
    arguments = parser.parse_args()
    bench = _Bench(arguments.bundle, arguments.text, arguments.tokens, arguments.threads)
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
    def __init__(self, bundle: Path, text: int, tokens: int, threads: int) -> None:
        self._pipeline = Pipeline(bundle, threads=threads)
        backend = self._pipeline._backend
        assert isinstance(backend, BatchBackend)
        self._backend = backend
        self._text, self._tokens = text, tokens
        self._random = np.random.default_rng(0)

    def one_by_one(self, size: int) -> list[float]:
        """Return the milliseconds of each stage, summed over the questions."""
        return np.sum([self._run(1, first) for first in range(size)], axis=0).tolist()

    def together(self, size: int) -> list[float]:
        """Return the milliseconds of each stage."""
        return self._run(size, 0)

    def _run(self, size: int, first: int) -> list[float]:
        manifest, backend = self._pipeline.bundle.manifest, self._backend
        vision, rows = manifest.vision_encoder, manifest.language_model.embedding_rows
        shape = (size, vision.image_height, vision.image_width, 3)
        pixels = self._random.integers(0, 256, shape, dtype=np.uint8)
        clock = Clock()
        kept, _ = backend.select(
            backend.encode(pixels), self._pipeline.selector, np.ones((size, vision.tokens), np.bool_)
        )
        seen = clock.lap()
        visual = range(rows, rows + self._pipeline.visual_tokens)
        prompts = [[5] * 4 + [*visual] + [7] * (self._text - 4 + 2 * (first + i)) for i in range(size)]
        if size == 1:
            session = backend.language(kept)
            session.extend(prompts[0])
            prefilled = clock.lap()
            for _ in range(self._tokens - 1):
                session.extend((9,))
        else:
            batch = backend.language_batch(kept)
            batch.extend(prompts)
            prefilled = clock.lap()
            for _ in range(self._tokens - 1):
                batch.extend([(9,)] * size)
        return [seen, prefilled, clock.lap()]


if __name__ == "__main__":
    main()
