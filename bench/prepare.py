"""What the engines load: one random checkpoint, our bundles of it, and the peers' own forms of its decoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.first_token import unverified
from bench.random_checkpoint import CLIP_L_336, LM_04B, TINY_LM, TINY_VISION, write_random_checkpoint

TEXT_TOKENS = 64


@dataclass(frozen=True)
class Variant:
    """A form of the model: ``block`` is that of int4 weights, None the default; ``cut`` is ``--encoder-cut``."""

    precision: str
    dialect: str
    block: int | None = None
    cut: str | None = None

    @property
    def what(self) -> str:
        """The precision, the blocks if they are not the default's, and the cut."""
        blocks = "" if self.block is None else f" in blocks of {self.block}"
        return self.precision + blocks + ("" if self.cut is None else f" cut {self.cut}")


@dataclass(frozen=True)
class Sizes:
    """The model that is measured."""

    vision: dict[str, Any]
    text: dict[str, Any]
    decode: int

    @property
    def visual(self) -> int:
        """Visual tokens of one image."""
        return int((self.vision["image_size"] // self.vision["patch_size"]) ** 2)

    def takes(self, variant: Variant, *, language_alone: bool = False) -> bool:
        """Whether a variant's blocks divide the rows."""
        seen = variant.precision == "int4" and not language_alone
        graphs = (self.text, self.vision) if seen else (self.text,)
        widths = [graph[name] for graph in graphs for name in ("hidden_size", "intermediate_size")]
        if variant.cut is not None and self.vision["num_hidden_layers"] < FULL.vision["num_hidden_layers"]:
            return False
        return variant.block is None or not any(width % variant.block for width in widths)


FULL = Sizes(CLIP_L_336, LM_04B, decode=16)
# Blocks of 32 divide these sizes, and the peers' kernels take them.
TINY = Sizes(TINY_VISION, TINY_LM | {"hidden_size": 128, "intermediate_size": 256}, decode=4)


def prepare(sizes: Sizes, folder: Path, bundles: Collection[Variant]) -> Path:
    """Write the checkpoint and a bundle for each variant under ``folder``, unless they are there."""
    from divprune_edge.export.bundle import export_bundle
    from divprune_edge.export.checkpoint import Checkpoint
    from divprune_edge.export.planning import plan_export
    from divprune_edge.export.reporter import ConsoleReporter

    checkpoint = folder / "checkpoint"
    if not (checkpoint / "model.safetensors.index.json").is_file():
        write_random_checkpoint(checkpoint, sizes.vision, sizes.text)
    for variant in bundles:
        target = bundle_folder(folder, variant)
        if (target / "manifest.json").is_file():
            continue
        print(f"exporting {variant.what}, {variant.dialect}", flush=True)
        with Checkpoint(checkpoint, name="random") as opened:
            plan = plan_export(
                opened,
                selector="divprune",
                keep=None,
                prune="0.9",
                precision=variant.precision,
                dialect=variant.dialect,
                block_size=variant.block,
                encoder_cut=variant.cut,
            )
            export_bundle(plan, target, force=False, verify=unverified, report=ConsoleReporter())
    return checkpoint


def bundle_folder(folder: Path, variant: Variant) -> Path:
    """Return where the bundle of a variant lies."""
    blocks = "".join(f"-{one}".replace(":", "-") for one in (variant.block, variant.cut) if one is not None)
    return (
        folder
        / "bundles"
        / f"{variant.precision.replace('=', '-').replace(',', '_')}{blocks}-{variant.dialect}"
    )


def prepare_decoder(checkpoint: Path, folder: Path) -> Path:
    """Write the checkpoint's decoder as a Hugging Face Llama of its own, and return its folder."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    target = folder / "decoder"
    if (target / "config.json").is_file():
        return target
    target.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Any] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if name.startswith("language_model."):
                    weights[name.removeprefix("language_model.")] = opened.get_tensor(name)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (target / file).write_bytes((checkpoint / file).read_bytes())
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    config = {
        **text,
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "dtype": "float16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Make ``target`` unless it is there; a failure leaves nothing half made under that name."""
    if not target.exists():
        partial = target.with_name(f"partial-{target.name}")
        make(partial)
        partial.rename(target)
    return target
