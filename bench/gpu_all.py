"""Everything that a GPU must prove, in one go: tests, selector, a model of LLaVA-1.5-7B's size, and eager PyTorch.

Each part is a process of its own with a limit; one that fails is noted, and the others go on. The targets are compared
at the end, and all of it is written into one JSON. ``--tiny`` runs the same on a CPU with small sizes: does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.random_checkpoint import CLIP_L_336, LM_7B, TINY_LM, TINY_VISION, write_random_checkpoint
from divprune_edge.files import write_whole
from divprune_edge.runtime.backends.captured import GRAPHS_VARIABLE

PRECISIONS = {"fp16": "fp16", "int4": "vision=fp16,language=int4"}
UNCAPTURED = "fp16 without CUDA graphs"
WARPGROUPS = "float16, wgmma"
HOPPER = "9.0"
"""The compute capability whose warpgroups multiply."""
TEXT_TOKENS = 10
"""Beside the visual tokens, in eager PyTorch."""


@dataclass(frozen=True)
class Target:
    """A figure of the result, and the most that it may be."""

    name: str
    most: float
    of: Callable[[Mapping[str, Any]], float]


def _selector(size: str, dtype: str = "float16") -> Callable[[Mapping[str, Any]], float]:
    def find(result: Mapping[str, Any]) -> float:
        rows = result["selector"][dtype]["rows"]
        return float(next(row["us"]["kernel"] for row in rows if row["size"].startswith(size)))

    return find


def _stage(precision: str, variant: int, stage: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda result: _stages(result["models"][precision]["variants"][variant])[stage]


def _eager(stage: str) -> Callable[[Mapping[str, Any]], float]:
    """Ours over eager PyTorch's, both pruned."""
    return lambda result: _stage("fp16", 0, stage)(result) / result["eager"][stage]


def _launches(result: Mapping[str, Any]) -> float:
    return float(result["selector"]["float16"]["rows"][0]["launches"])


def _replayed(stage: str) -> Callable[[Mapping[str, Any]], float]:
    """With CUDA graphs over without, both pruned."""
    return lambda result: _stage("fp16", 0, stage)(result) / _stage(UNCAPTURED, 0, stage)(result)


TARGETS = (
    Target("selector 576 → 58 × 4096, µs", 50, _selector("576->58 x 4096")),
    Target("selector 2880 → 288 × 4096, µs", 300, _selector("2880->288 x 4096")),
    Target("selector 6272 → 627 × 3584, µs", 900, _selector("6272->627 x 3584")),
    Target("selector 2880 → 288 × 4096 by warpgroups, µs", 300, _selector("2880->288 x 4096", WARPGROUPS)),
    Target("selector 6272 → 627 × 3584 by warpgroups, µs", 900, _selector("6272->627 x 3584", WARPGROUPS)),
    Target("selector 576 → 58 × 4096, launches", 2, _launches),
    Target("selection in ONNX Runtime, ms", 0.15, _stage("fp16", 0, "select")),
    Target("prefill pruned, ms", 5, _stage("fp16", 0, "prefill")),
    Target("prefill unpruned, ms", 14, _stage("fp16", 1, "prefill")),
    Target("decode step, ms", 4.5, _stage("fp16", 0, "decode step")),
    Target("decode step over one without CUDA graphs", 1, _replayed("decode step")),
    Target("vision over eager PyTorch", 1, _eager("vision")),
    Target("prefill over eager PyTorch", 1, _eager("prefill")),
    Target("decode step over eager PyTorch", 1, _eager("decode step")),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/gpu.json"))
    parser.add_argument(
        "--work", type=Path, help="folder for checkpoint and bundles (default: the temporary one)"
    )
    parser.add_argument("--layers", type=int, default=LM_7B["num_hidden_layers"], help="of the decoder")
    parser.add_argument("--limit", type=int, default=240, help="seconds for each part")
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--eager", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.eager is not None:
        vision, text = _sizes(options)
        write_whole(options.eager, json.dumps(eager(vision, text, "cpu" if options.tiny else "cuda")))
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="divprune-gpu-", dir=options.work) as folder:
        result = measure(options, Path(folder))
    result["targets"] = [_judged(target, result) for target in TARGETS]
    result["seconds"] = round(time.monotonic() - started)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.json, json.dumps(result, indent=1) + "\n")
    print(
        "\n".join(_line(one) for one in result["targets"]), f"\n{result['seconds']} s, {options.json}", sep=""
    )
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what was measured, and in ``failed`` what was not and why."""
    failed: dict[str, str] = {}
    run = _Runner(options.limit, failed)
    tiny, vision_text = ["--tiny"] if options.tiny else [], _sizes(options)
    result: dict[str, Any] = {"machine": _machine(), "failed": failed, "selector": {}, "models": {}}
    if not options.tiny:
        said = run("tests", ["pytest", "-q", "tests/gpu", "--ignore=tests/gpu/test_wgmma.py"])
        result["tests"] = _last_line(said)
    for dtype in ("float16", "float32"):
        found = folder / f"{dtype}.json"
        run(f"selector, {dtype}", ["bench.selector", "--dtype", dtype, "--json", str(found), *tiny])
        result["selector"][dtype] = _read(found)
    checkpoint = write_random_checkpoint(folder / "checkpoint", *vision_text)
    for name, precision in PRECISIONS.items():
        bundle, found = folder / name, folder / f"{name}.json"
        export = [
            "--model",
            str(checkpoint),
            "--target",
            "cuda",
            "--precision",
            precision,
            "--greedy",
            "--no-verify",
        ]
        run(f"export, {name}", ["divprune_edge.export", *export, "--output", str(bundle)])
        backend = "cpu" if options.tiny else "cuda"
        profile = [
            "profile",
            str(bundle),
            "--backend",
            backend,
            "--answer-tokens",
            "64",
            "--json",
            str(found),
        ]
        run(f"profile, {name}", ["divprune_edge.runtime", *profile])
        result["models"][name] = _read(found)
        if name == "fp16":
            found.unlink(missing_ok=True)
            run(f"profile, {UNCAPTURED}", ["divprune_edge.runtime", *profile], **{GRAPHS_VARIABLE: "off"})
            result["models"][UNCAPTURED] = _read(found)
    found = folder / "eager.json"
    again = ["bench.gpu_all", "--eager", str(found), "--layers", str(options.layers), *tiny]
    run("eager PyTorch", again)
    result["eager"] = _read(found)
    # What has never run before comes last: should it hang, all else is measured.
    if options.tiny or result["machine"]["gpu"].endswith(HOPPER):
        if not options.tiny:
            result["tests, wgmma"] = _last_line(
                run("tests, wgmma", ["pytest", "-q", "tests/gpu/test_wgmma.py"])
            )
        found = folder / "wgmma.json"
        run(f"selector, {WARPGROUPS}", ["bench.selector", "--product", "wgmma", "--json", str(found), *tiny])
        result["selector"][WARPGROUPS] = _read(found)
    return result


def _last_line(said: str | None) -> str | None:
    return said.strip().splitlines()[-1] if said else None


class _Runner:
    """Starts Python modules and notes which failed, and why."""

    def __init__(self, limit: int, failed: dict[str, str]) -> None:
        self._limit, self._failed = limit, failed

    def __call__(self, name: str, module: Sequence[str], **environment: str) -> str | None:
        print(f"{name} …", flush=True)
        command = [sys.executable, "-m", *module]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=self._limit,
                check=False,
                env={**os.environ, **environment},
            )
        except subprocess.TimeoutExpired:
            self._failed[name] = f"took more than {self._limit} s"
            return None
        if done.returncode != 0:
            self._failed[name] = (done.stderr or done.stdout).strip()[-2000:]
            print(f"  failed: {self._failed[name].splitlines()[-1]}", flush=True)
        return done.stdout


def eager(
    vision: Mapping[str, Any], text: Mapping[str, Any], device: str, keep: int = 58
) -> dict[str, float]:
    """Return milliseconds of encoder, prefill of ``keep`` tokens and a decode step in transformers, random weights."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    kinds = ((CLIPVisionModel, CLIPVisionConfig, vision), (LlamaForCausalLM, LlamaConfig, text))
    half = torch.float16 if device == "cuda" else torch.float32
    torch.set_default_dtype(half)
    with torch.device(device):
        tower, decoder = (
            kind(config(**{k: v for k, v in sizes.items() if k != "model_type"})).eval()
            for kind, config, sizes in kinds
        )
        pixels = torch.zeros(1, 3, vision["image_size"], vision["image_size"])
        prompt = torch.zeros(1, keep + TEXT_TOKENS, text["hidden_size"])
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

    with torch.inference_mode():
        cache = decoder(inputs_embeds=prompt, use_cache=True, logits_to_keep=1).past_key_values
        return {
            "vision": clock(lambda: tower(pixels)),
            "prefill": clock(lambda: decoder(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)),
            "decode step": clock(lambda: decoder(input_ids=token, past_key_values=cache, use_cache=True)),
        }


def _sizes(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    if options.tiny:
        return TINY_VISION, TINY_LM
    return CLIP_L_336, LM_7B | {"num_hidden_layers": options.layers}


def _stages(variant: Mapping[str, Any]) -> dict[str, float]:
    return {one["stage"]: float(one["ms"]["median"]) for one in variant["stages"]}


def _machine() -> dict[str, str]:
    import platform

    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,compute_cap",
        "--format=csv,noheader",
    ]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = ""
    return {"gpu": gpu, "python": platform.python_version(), "processor": platform.machine()}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _judged(target: Target, result: Mapping[str, Any]) -> dict[str, Any]:
    try:
        value = target.of(result)
    except (KeyError, IndexError, TypeError, StopIteration, ZeroDivisionError):
        return {"target": target.name, "most": target.most, "measured": None, "met": None}
    return {"target": target.name, "most": target.most, "measured": value, "met": value <= target.most}


def _line(one: Mapping[str, Any]) -> str:
    if one["measured"] is None:
        return f"  –    {one['target']}: not measured (at most {one['most']:g})"
    return f"  {'met ' if one['met'] else 'MISS'} {one['target']}: {one['measured']:.3g} (at most {one['most']:g})"


if __name__ == "__main__":
    sys.exit(main())
