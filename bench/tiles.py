"""An image of five tiles on a model of LLaVA-1.6-7B's size: CLIP-L-336, 2,928 rows of which divprune keeps 288.

Random weights, in int8 (encoder) and int4 (language model), dialect ``onnxruntime``, ONNX Runtime on the CPU. Measured
in a process of its own, pruned and unpruned in turn, after a pruned answer that is not counted; beside the time that
passes, the time that the processor works, which says more where other programs run. ``--tiny`` is a smoke test.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bench import first_token
from bench.first_token import Variant
from bench.random_checkpoint import (
    CLIP_L_336,
    LM_7B,
    TINY_LM,
    TINY_VISION,
    llava_layout,
    write_random_checkpoint,
)

TEXT_TOKENS = 64
KEEP = 288


def export(folder: Path, tiny: bool) -> Path:
    """Write the checkpoint and its bundle, and return the bundle's folder; the checkpoint is removed."""
    from divprune_edge.export.bundle import export_bundle
    from divprune_edge.export.checkpoint import Checkpoint
    from divprune_edge.export.planning import plan_export
    from divprune_edge.export.reporter import ConsoleReporter

    vision, text = CLIP_L_336, LM_7B
    if tiny:
        vision = TINY_VISION | {"image_size": 48}
        text = TINY_LM | {"hidden_size": 128, "intermediate_size": 256}
    write_random_checkpoint(folder / "checkpoint", vision, text, layout=llava_layout(vision, tiled=True))
    with Checkpoint(folder / "checkpoint", name="random") as opened:
        plan = plan_export(
            opened,
            selector="divprune",
            keep=None if tiny else KEEP,
            prune="0.9" if tiny else None,
            precision="vision=int8,language=int4",
            dialect="onnxruntime",
            block_size=32 if tiny else 128,
        )
        export_bundle(
            plan, folder / "bundle", force=False, verify=first_token.unverified, report=ConsoleReporter()
        )
    shutil.rmtree(folder / "checkpoint")
    return folder / "bundle"


def measure(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Answer with the first token, pruned and unpruned in turn."""
    from PIL import Image

    from divprune_edge.runtime.bundle import Bundle

    bundle = Bundle.open(folder)
    side = 2 * bundle.manifest.vision_encoder.image_height
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    variants = {"pruned": Variant(bundle.selector(), TEXT_TOKENS), "full": Variant(None, TEXT_TOKENS)}
    results = first_token.measure(folder, variants, picture, warm=picture, threads=threads, rounds=rounds)
    medians, first = results["median_ms"], results["ttft_ms"]
    return {
        "model": "LLaVA-NeXT, random weights",
        **results,
        "ttft_ratio": first["full"] / first["pruned"],
        "prefill_ratio": medians["full"]["prefill"] / medians["pruned"]["prefill"],
        "processor_ttft_ratio": results["processor_ttft_ms"]["full"] / results["processor_ttft_ms"]["pruned"],
    }


if __name__ == "__main__":
    first_token.run("bench.tiles", __doc__, export, measure, rounds=1, disk=14 * 2**30)
