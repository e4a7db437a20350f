"""An image of 1,936 visual tokens on a model of Qwen3-VL-2B's size, of which divprune keeps 484 and 194.

Prompts are of 1,995 and 2,048 tokens unpruned. Random weights in int8, dialect ``onnxruntime``, ONNX Runtime on the
CPU, in a process of its own; in each round the image is encoded once, and the prompts follow in turn, three times.
``--tiny`` is a smoke test.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import first_token
from bench.first_token import Variant
from bench.random_checkpoint import QWEN3_VL_2B, qwen3_vl_layout, write_random_checkpoint

PRUNED = ("0.75", "0.9")
PROMPTS = (1995, 2048)
"""Tokens of the unpruned prompts: what NVIDIA's TensorRT-Edge-LLM prunes, and what its benchmarks prefill."""
REPEATS = 3
"""Of each prompt in a round: the tower takes most of it, and has nothing to do with the prompt."""
_PATCHES = {
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured: a config, how many visual tokens a side an image has, and the tokens of the prompts."""

    vision: dict[str, Any]
    text: dict[str, Any]
    side: int
    prompts: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Pixels of the image a side."""
        return int(self.side * self.vision["patch_size"] * self.vision["spatial_merge_size"])


FULL = Sizes(
    {**QWEN3_VL_2B["vision_config"], **_PATCHES, "num_heads": 16},
    {
        **QWEN3_VL_2B["text_config"],
        "head_dim": 128,
        "vocab_size": 151936,
        # The cache has as many rows; the model's own would be 262,144.
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    },
    side=44,
    prompts=PROMPTS,
)
TINY = Sizes(
    {
        **FULL.vision,
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1],
    },
    {
        **FULL.text,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 512,
    },
    side=16,
    prompts=(270, 280),
)


def export(folder: Path, tiny: bool) -> Path:
    """Write the checkpoint and its bundle, and return the bundle's folder; the checkpoint is removed."""
    from divprune_edge.export.add_selector import add_selector
    from divprune_edge.export.bundle import export_bundle
    from divprune_edge.export.checkpoint import Checkpoint
    from divprune_edge.export.planning import plan_export
    from divprune_edge.export.reporter import ConsoleReporter

    sizes = TINY if tiny else FULL
    layout = qwen3_vl_layout(sizes.vision, sizes.pixels**2)
    write_random_checkpoint(folder / "checkpoint", sizes.vision, sizes.text, layout=layout)
    with Checkpoint(folder / "checkpoint", name="random") as opened:
        plan = plan_export(
            opened,
            selector="divprune",
            keep=None,
            prune=PRUNED[0],
            precision="int8",
            dialect="onnxruntime",
        )
        bundle = folder / "bundle"
        export_bundle(plan, bundle, force=False, verify=first_token.unverified, report=ConsoleReporter())
    for prune in PRUNED[1:]:
        add_selector(bundle, "divprune", keep=None, prune=prune, force=False, verify=False)
    shutil.rmtree(folder / "checkpoint")
    return bundle


def measure(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Answer prompts of both lengths with the first token, pruned in all ways and unpruned in turn."""
    from PIL import Image

    from divprune_edge.runtime.bundle import Bundle

    bundle = Bundle.open(folder)
    sizes = next(one for one in (FULL, TINY) if one.side**2 == bundle.manifest.candidates)
    random = np.random.default_rng(0)
    picture, small = (
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8))
        for side in (sizes.pixels, sizes.pixels // sizes.side * 2)
    )
    selectors = sorted(bundle.manifest.selectors, key=lambda one: one.keep)
    variants = {
        f"{tokens}, {'unpruned' if selector is None else selector.id}": Variant(
            selector, tokens - sizes.side**2
        )
        for tokens in sizes.prompts
        for selector in (*selectors, None)
    }
    results = first_token.measure(
        folder, variants, picture, warm=small, threads=threads, rounds=rounds, repeats=REPEATS
    )
    return {"model": "Qwen3-VL, random weights", **results, **compared(results)}


def compared(results: dict[str, Any]) -> dict[str, Any]:
    """Return what pruning saves of each prompt, by time and by the processor's: medians over answers in turn."""
    found: dict[str, Any] = {}
    for kind in ("", "processor_"):
        samples = {name: np.array(answers) for name, answers in results[f"{kind}samples_ms"].items()}
        full = {name: samples[f"{name.partition(',')[0]}, unpruned"] for name in samples}
        prefill = {name: np.median(full[name][:, -1] / of[:, -1]) for name, of in samples.items()}
        saved = {name: np.median(1 - of.sum(axis=1) / full[name].sum(axis=1)) for name, of in samples.items()}
        found |= {
            f"{kind}prefill_ratio": {name: float(ratio) for name, ratio in prefill.items()},
            f"{kind}ttft_saved": {name: float(share) for name, share in saved.items()},
        }
    return found


if __name__ == "__main__":
    first_token.run("bench.qwen", __doc__, export, measure, rounds=3, disk=9 * 2**30)
