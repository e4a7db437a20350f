"""The parts of :mod:`bench.gpu_all` that no other command measures: ``python -m bench.gpu_parts PART --json FILE``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.random_checkpoint import CLIP_L_336, LM_7B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.files import write_whole

TEXT_TOKENS = 10
"""Beside the visual tokens, in eager PyTorch."""
FLASH = "ORT_ENABLE_CUDNN_FLASH_ATTENTION"
"""What tells ONNX Runtime whether cuDNN does the attention, which plans anew for each length; unset: on Hopper."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("smoke", "checkpoint", "probe", "eager"))
    parser.add_argument(
        "--folder", type=Path, help="of the checkpoint that is written, or the bundle that is read"
    )
    parser.add_argument("--layers", type=int, default=LM_7B["num_hidden_layers"], help="of the decoder")
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    vision, text = CLIP_L_336, LM_7B | {"num_hidden_layers": options.layers}
    if options.tiny:
        vision, text = TINY_VISION, TINY_LM
    device = "cpu" if options.tiny else "cuda"
    found: Mapping[str, Any] = {}
    if options.part == "smoke":
        found = smoke(device)
    elif options.part == "checkpoint":
        write_random_checkpoint(options.folder, vision, text)
    elif options.part == "probe":
        found = probe(options.folder, device)
    else:
        found = eager(vision, text, device)
    if options.json is not None:
        write_whole(options.json, json.dumps(found))
    return 0


def smoke(device: str) -> dict[str, Any]:
    """Run each form of the kernel once and answer one question: seconds of each, said as soon as it is through."""
    found: dict[str, Any] = {}
    began = time.perf_counter()

    def done(name: str) -> None:
        nonlocal began
        found[name], began = round(time.perf_counter() - began, 2), time.perf_counter()
        print(f"{name}: {found[name]} s", flush=True)

    if device == "cuda":
        import torch

        from divprune_edge.plugins import torch_op

        done("PyTorch")
        products = {"float32": ["tuned"], "float16": ["tuned"], "bfloat16": ["tuned"]}
        if torch.cuda.get_device_capability() == (9, 0):
            products["float16"].append("wgmma")
        # One block, a cluster, and no stored matrix.
        for dtype, product in ((dtype, one) for dtype, several in products.items() for one in several):
            for rows, keep, budget in ((576, 58, 0), (2880, 288, 0), (576, 58, 1)):
                tokens = torch.randn(1, rows, 1024, device="cuda").to(getattr(torch, dtype))
                _, kept = torch_op.max_min_diversity(tokens, keep, matrix_budget=budget, product=product)
                picks = kept.cpu().numpy()[0]
                assert len(picks) == keep and (np.diff(picks) > 0).all(), picks
                done(f"selection, {dtype}, {product}, {rows} rows{', matrix-free' * budget}")
    _ask(device, done)
    return found


def _ask(device: str, done: Callable[[str], None]) -> None:
    """Answer one question about the demo's image with the demo, exported here."""
    from divprune_edge.export.cli import app
    from divprune_edge.models.demo import CHECKPOINT, IMAGE
    from divprune_edge.runtime.pipeline import Pipeline

    with tempfile.TemporaryDirectory(prefix="divprune-smoke-") as folder:
        bundle = str(Path(folder) / "demo")
        precision = ["--precision", "fp16", "--target", "cuda", "--greedy"]
        app(
            ["llava", "--model", str(CHECKPOINT), *precision, "--no-verify", "--output", bundle],
            standalone_mode=False,
        )
        done("export")
        pipeline = Pipeline(bundle, backend=device)
        done("sessions")
        for which in ("first", "second"):
            answer = pipeline.ask(IMAGE, "What colour is the circle?", max_tokens=8, ignore_eos=True)
            done(f"{which} answer")
        print(answer.answer, flush=True)
        backend: Any = pipeline.backend
        if backend.memory.captures:
            info = pipeline.bundle.manifest
            for graph in (info.vision_encoder, info.language_model):
                assert backend.memory.captures_of(backend._session(graph)), f"{graph.file} is not captured"


def probe(folder: Path, device: str) -> dict[str, Any]:
    """Return what passes between host and device in a decode step, and prefills of lengths that are new and seen."""
    from divprune_edge.runtime.pipeline import Pipeline

    backend: Any = Pipeline(folder, backend=device).backend
    manifest = backend._bundle.manifest
    info, keep = manifest.language_model, 58
    nothing = np.zeros((1, keep, manifest.vision_encoder.width), manifest.token_dtype)
    session = backend.session()
    slot = session.add(backend.to_device(nothing))
    visual = range(info.embedding_rows, info.embedding_rows + keep)

    def prefill(words: int) -> float:
        session.truncate(slot, 0)
        began = time.perf_counter()
        session.extend(slot, [1, *visual, *[5] * words])
        return 1000 * (time.perf_counter() - began)

    prefill(TEXT_TOKENS)
    new = [prefill(TEXT_TOKENS + more) for more in range(1, 8)]
    seen = [prefill(TEXT_TOKENS + more) for _ in range(3) for more in range(1, 8)]
    for _ in range(4):
        session.step({slot: 5})
    traffic = backend.memory.traffic
    before, steps = traffic.to_device + traffic.to_host, 8
    for _ in range(steps):
        session.step({slot: 5})
    return {
        "step_bytes": (traffic.to_device + traffic.to_host - before) / steps,
        "new_prefill_ms": median(new),
        "seen_prefill_ms": median(seen[7:]),
        FLASH: os.environ.get(FLASH, "not set"),
    }


def eager(vision: Mapping[str, Any], text: Mapping[str, Any], device: str) -> dict[str, float]:
    """Return milliseconds of encoder, prefill pruned and not, and a decode step in transformers, random weights."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    kinds = ((CLIPVisionModel, CLIPVisionConfig, vision), (LlamaForCausalLM, LlamaConfig, text))
    half = torch.float16 if device == "cuda" else torch.float32
    torch.set_default_dtype(half)
    rows = (vision["image_size"] // vision["patch_size"]) ** 2
    with torch.device(device):
        tower, decoder = (
            kind(config(**{k: v for k, v in sizes.items() if k != "model_type"})).eval()
            for kind, config, sizes in kinds
        )
        pixels = torch.zeros(1, 3, vision["image_size"], vision["image_size"])
        prompts = [torch.zeros(1, keep + TEXT_TOKENS, text["hidden_size"]) for keep in (58, rows)]
        token = torch.zeros(1, 1, dtype=torch.long)

    def clock(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(13):
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - started))
        return median(times[3:])

    def filled(prompt: Any) -> Any:
        return decoder(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        cache = filled(prompts[0]).past_key_values
        return {
            "vision": clock(lambda: tower(pixels)),
            "prefill": clock(lambda: filled(prompts[0])),
            "prefill unpruned": clock(lambda: filled(prompts[1])),
            "decode step": clock(lambda: decoder(input_ids=token, past_key_values=cache, use_cache=True)),
        }


if __name__ == "__main__":
    sys.exit(main())
