"""Servers under load: ours, pruned and not, and llama.cpp's on prompts of the same sizes without an image.

Requests arrive as a Poisson process that waits for nobody; only a bound of requests in flight turns some away. A load
is raised until the server does not keep up. Images are new ones (the encoder runs for each), or from a gallery larger
than the caches hold unpruned. ``--tiny`` only shows that everything runs: weights are random, right for speed, useless
for answers. A peer that is not installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from bench.engines import llamacpp_
from bench.load import Ask, closed_loop, figures, open_loop, poisson
from bench.prepare import (
    FULL,
    TEXT_TOKENS,
    TINY,
    Sizes,
    Variant,
    bundle_folder,
    once,
    prepare,
    prepare_decoder,
)
from bench.serve_summary import BOUNDS, tables
from bench.servers import llama, ours
from bench.summary import processor
from divprune_edge.files import write_whole

OURS = Variant("int8", "onnxruntime")
ANSWER = 16
LONG_ANSWER = 32
AT_ONCE = 8
GALLERY = 16
PEER = ("llama-cpp-python",)
IN_FLIGHT = 16


@dataclass(frozen=True)
class Loads:
    """How long a load lasts, how many requests it has at least, and which loads there are (requests a second).

    Attributes:
        unpruned, pruned, cut: about new images; ``cut``: by an encoder with ``--encoder-cut`` ``layer``.
        gallery: about images that are asked about again.
        short_text, long_text: of llama.cpp's server.
    """

    seconds: float
    least: int
    unpruned: tuple[float, ...]
    pruned: tuple[float, ...]
    cut: tuple[float, ...]
    layer: str
    gallery: tuple[float, ...]
    short_text: tuple[float, ...]
    long_text: tuple[float, ...]


REAL = Loads(
    seconds=12,
    least=20,
    unpruned=(0.2, 0.4, 0.6),
    pruned=(0.4, 0.8, 1.0),
    cut=(0.6, 1.0, 1.4),
    layer="12:144",
    gallery=(1.0, 2.0, 4.0),
    short_text=(0.8,),
    long_text=(0.15,),
)
QUICK = Loads(0.5, 3, (8,), (8,), (8,), "1:144", (8,), (8,), (8,))


def main() -> None:
    """Prepare, measure, print the tables and write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep what is prepared in this folder")
    parser.add_argument("--prepare", action="store_true", help="prepare only")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    sizes, plan = (TINY, QUICK) if arguments.tiny else (FULL, REAL)
    with tempfile.TemporaryDirectory(prefix="divprune-bench-") as temporary:
        folder = arguments.work or Path(temporary)
        cut = replace(OURS, cut=plan.layer)
        checkpoint = prepare(sizes, folder, [OURS, cut])
        peer = _llama_file(checkpoint, folder) if find_spec("llama_cpp") else None
        if arguments.prepare:
            return
        began, load = time.monotonic(), os.getloadavg()[0]
        found = measure(
            sizes, plan, [bundle_folder(folder, one) for one in (OURS, cut)], peer, arguments.threads
        )
        found |= {"seconds": round(time.monotonic() - began), "load_before": round(load, 2)}
    found = {
        "command": " ".join(["python -m bench.serve", *sys.argv[1:]]),
        "processor": processor(),
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("onnxruntime", "uvicorn", *PEER[: peer is not None])},
        **found,
    }
    print(tables(found))
    if arguments.json:
        write_whole(arguments.json, json.dumps(found, indent=2) + "\n")


def _llama_file(checkpoint: Path, folder: Path) -> Path:
    decoder = prepare_decoder(checkpoint, folder)
    return once(folder / "serve-Q8_0.gguf", lambda partial: llamacpp_.prepare(decoder, partial, "Q8_0"))


def measure(
    sizes: Sizes, plan: Loads, bundles: Sequence[Path], peer: Path | None, threads: int
) -> dict[str, Any]:
    """Return the rows of all loads, what batching gives, and who was left out.

    ``bundles`` are the one without a cut in its encoder and the one with it.
    """
    keep = max(1, round(0.1 * sizes.visual))
    rows: list[dict[str, Any]] = []
    batching: dict[str, Any] = {}
    whole = [
        ("new", "unpruned", plan.unpruned),
        ("new", "pruned", plan.pruned),
        ("gallery", "unpruned", plan.gallery),
        ("gallery", "pruned", plan.gallery),
    ]
    servers = ("ours int8", whole), (f"ours int8, encoder cut {plan.layer}", [("new", "pruned", plan.cut)])
    for bundle, (server, loads) in zip(bundles, servers, strict=True):
        with ours(bundle, threads, AT_ONCE) as url:
            asking = _Asking(url, sizes)
            batching = batching or asking.batching()
            for images, model, rates in loads:
                if images == "gallery":
                    asking.look_at_gallery(model)
                visual = keep if model == "pruned" else sizes.visual
                facts = {"server": server, "visual": visual, "images": images}
                rows += _raise_load(url, facts, rates, plan, asking.asks(model, images))
    skipped = []
    if peer is None:
        skipped.append({"label": "llama.cpp's server", "reason": "llama-cpp-python[server] is not installed"})
    else:
        try:
            with llama(peer, threads, sizes.visual + TEXT_TOKENS + ANSWER + 8) as url:
                for visual, rates in ((keep, plan.short_text), (sizes.visual, plan.long_text)):
                    facts = {"server": "llama.cpp Q8_0 (text only)", "visual": visual, "images": "none"}
                    rows += _raise_load(url, facts, rates, plan, _texts(url, TEXT_TOKENS + visual))
        except (RuntimeError, httpx.HTTPError) as error:
            skipped.append({"label": "llama.cpp's server", "reason": str(error)[-300:]})
    return {"text_tokens": TEXT_TOKENS, "batching": batching, "rows": rows, "skipped": skipped}


def _raise_load(
    url: str, facts: dict[str, Any], rates: Sequence[float], plan: Loads, asks: Iterator[Ask]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each load, until the server does not keep up."""
    for rate in rates:
        number = max(round(rate * plan.seconds), plan.least)
        requests = [next(asks) for _ in range(number)]
        row = {**facts, "load": rate, **figures(open_loop(url, requests, poisson(rate, number), IN_FLIGHT))}
        print(json.dumps(row), file=sys.stderr, flush=True)
        yield row
        if row["turned_away"] or row["failed"] or row["ttft_ms"]["p95"] > BOUNDS[-1] * 1e3:
            return


class _Asking:
    """Questions of the benchmark's sizes to our server."""

    def __init__(self, url: str, sizes: Sizes) -> None:
        self._url, self._sizes = url, sizes
        listed = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
        names = {"none" if one["id"].endswith(":none") else "pruned": one["id"] for one in listed}
        self._models = {"pruned": names["pruned"], "unpruned": names["none"]}
        self._random, self._number = random.Random(0), count(GALLERY)
        self._letters = 1
        body = json.loads(self._ask("pruned", 0, 1).body) | {"stream": False}
        usage = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()[
            "usage"
        ]
        self._letters = TEXT_TOKENS - (usage["prompt_tokens"] - usage["visual_tokens"]) + 1

    def asks(self, model: str, images: str) -> Iterator[Ask]:
        """Yield questions about new images, or about those of the gallery."""
        while True:
            yield self._ask(model, next(self._number) if images == "new" else self._random.randrange(GALLERY))

    def look_at_gallery(self, model: str) -> None:
        """Ask about each image of the gallery once."""
        closed_loop(self._url, [self._ask(model, number, 1) for number in range(GALLERY)], 1)

    def batching(self) -> dict[str, Any]:
        """Return tokens a second and a step's milliseconds of several clients and of one, about a known image."""
        found: dict[int, list[tuple[float, float]]] = {1: [], AT_ONCE: []}
        for turn in range(3):
            for clients in found:
                asks = [self._ask("pruned", 0, LONG_ANSWER) for _ in range(AT_ONCE)]
                before = self._steps()
                # Not the texts that came: an id of random weights may have none.
                speed = figures(closed_loop(self._url, asks, clients))["answers_per_second"] * LONG_ANSWER
                seconds, steps = (new - old for new, old in zip(self._steps(), before, strict=True))
                found[clients] += (
                    [(speed, seconds / steps * 1e3)] if turn else []
                )  # the first one is to warm up
        (one, step), (together, large) = (np.median(values, axis=0).tolist() for values in found.values())
        return {
            "at_once": AT_ONCE,
            "one": one,
            "together": together,
            "ratio": together / one,
            "step_ms": {"one": step, "together": large},
        }

    def _steps(self) -> tuple[float, ...]:
        """Return the seconds of all decode steps so far, and how many there were."""
        text = httpx.get(f"{self._url}/metrics", trust_env=False).text
        return tuple(
            float(re.findall(rf"^divprune_step_seconds_{what} (\S+)$", text, re.MULTILINE)[0])
            for what in ("sum", "count")
        )

    def _ask(self, model: str, number: int, tokens: int = ANSWER) -> Ask:
        text = " ".join(self._random.choices(string.ascii_lowercase, k=self._letters))
        url = "data:image/jpeg;base64," + base64.b64encode(self._image(number)).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {
            "model": self._models[model],
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        return Ask("/v1/chat/completions", json.dumps(body).encode())

    def _image(self, number: int) -> bytes:
        side = self._sizes.vision["image_size"]
        pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(held := io.BytesIO(), "JPEG", quality=90)
        return held.getvalue()


def _texts(url: str, tokens: int) -> Iterator[Ask]:
    """Yield prompts of so many tokens, the one that begins them counted, for llama.cpp's server."""
    picking = random.Random(tokens)

    def body(most: int, **more: Any) -> dict[str, Any]:
        prompt = "".join(f"t{picking.randrange(3, 10)}" for _ in range(tokens - 1))
        return {"prompt": prompt, "max_tokens": most, "temperature": 0.0, **more}

    usage = httpx.post(f"{url}/v1/completions", json=body(1), timeout=120, trust_env=False).json()["usage"]
    if usage["prompt_tokens"] != tokens:
        raise RuntimeError(f"a prompt of {tokens} tokens has {usage['prompt_tokens']}")
    while True:
        yield Ask("/v1/completions", json.dumps(body(ANSWER, stream=True)).encode())


if __name__ == "__main__":
    main()
