"""What the generation loop costs beside the language model: time of the loop less time inside the session.

Measured on any bundle: ``python -m bench.loop BUNDLE``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from divprune_edge.processing.detokenize import Detokenizer
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.generate import Decoding, Writer, write
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.sampling import Sampler


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(prog="python -m bench.loop", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    loops, inside = measure(arguments.bundle, arguments.tokens, arguments.repeats, arguments.threads)
    extra = median(loop - run for loop, run in zip(loops, inside, strict=True))
    print(
        f"per token: loop {median(loops):.3f} ms, in the session {median(inside):.3f} ms, beside it {extra:.3f} ms: "
        f"{extra / median(loops):.1%} of this loop, {extra * 60 / 1e3:.1%} at 60 tokens/s"
    )


def measure(bundle: Path, tokens: int, repeats: int, threads: int) -> tuple[list[float], list[float]]:
    """Return milliseconds per decoded token, of the loop and inside the session, for each repeat."""
    pipeline = Pipeline(bundle, threads=threads)
    manifest = pipeline.bundle.manifest
    width = manifest.vision_encoder.width
    visual = pipeline.backend.to_device(np.zeros((1, pipeline.visual_tokens, width), np.float32))
    prompt = pipeline.prompts.encode([Turn("user", "a b c d", images=1)], [pipeline.visual_tokens])
    runs: list[float] = []
    run = ort.InferenceSession.run_with_iobinding

    def timed(self: Any, binding: Any, *rest: Any) -> None:
        start = time.perf_counter()
        run(self, binding, *rest)
        runs.append(1e3 * (time.perf_counter() - start))

    loops, inside = [], []
    ort.InferenceSession.run_with_iobinding = timed
    try:
        for i in range(repeats + 1):
            runs.clear()
            writer = Writer(
                prompt,
                Detokenizer(pipeline.prompts.tokenizer.model),
                Sampler(forbidden=manifest.prompt.forbidden_ids),
                Decoding(max_tokens=tokens + 1, ignore_eos=True),
                stop_ids=frozenset(),
                context=manifest.language_model.positions,
            )
            session = pipeline.backend.session()
            write(session, {session.add(visual): writer})
            result = writer.result()
            if i:
                loops.append(result.decode_ms / tokens)
                inside.append(sum(runs[1:]) / tokens)  # the first run is the prefill
    finally:
        ort.InferenceSession.run_with_iobinding = run
    return loops, inside


if __name__ == "__main__":
    main()
