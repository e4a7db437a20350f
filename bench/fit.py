"""Memory and time of fitting a schedule to LLaVA-1.5-7B's sizes: `python -m bench.fit --work DIR`.

A random checkpoint with a few of its layers (2.3 GB with three) and noise for images: each layer is read, run and
forgotten as in the whole model, so that the peak is the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bench.random_checkpoint import CLIP_L_336, LM_7B, write_random_checkpoint
from bench.schedules import Silent
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.fit import fit_schedule, read_request
from divprune_edge.export.planning import plan_export
from divprune_edge.runtime.lab.profiling.peak_memory import peak_bytes


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and images")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--images", type=int, default=2)
    options = parser.parse_args(arguments)
    folder, images = options.work / f"checkpoint-{options.layers}", options.work / "images"
    if not folder.exists():
        write_random_checkpoint(folder, CLIP_L_336, LM_7B | {"num_hidden_layers": options.layers})
    images.mkdir(exist_ok=True)
    for i in range(options.images):
        pixels = np.random.default_rng(i).integers(0, 256, (336, 336, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    with Checkpoint(folder, folder.name) as checkpoint:
        plan = plan_export(checkpoint, selector="divprune", keep=None, prune="0", precision="fp32")
        started = time.perf_counter()
        fit_schedule(plan, read_request(images, None, 0.6, 2), options.work / "fit.json", Silent())
    seconds = time.perf_counter() - started
    print(
        f"{options.layers} layers, {options.images} images: {seconds:.0f} s, peak {peak_bytes() / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
