"""Accuracy of the demo of Qwen3-VL's architecture: `python -m bench.qwen_demo BUNDLE --json FILE`.

Held-out questions about single images, two images and clips, with every selector and budget of the bundle, asked
through the toolkit itself; and about single images made smaller, to as many visual tokens as a budget keeps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from divprune_edge import Pipeline, Video
from divprune_edge.files import write_whole
from divprune_edge.models.demo.held_out import HELD_OUT_SEED, held_out
from divprune_edge.models.demo.questions import TYPES, Asker, Question
from divprune_edge.models.demo.render import render
from divprune_edge.models.demo.scenes import Split, sample_scene, scene_rng
from divprune_edge.models.demo.several import ask_clip, ask_pair, sample_clip
from divprune_edge.runtime.lab.evaluation.scoring import wilson

LARGEST = 128
"""Pixels a side of the checkpoint's largest square image, 256 visual tokens."""
SHAPES = {"wide": (96, 128), "tall": (128, 96), "small": (96, 96)}
"""Height and width of the images that are not the largest squares."""
SMALLER = {"64x64": 64, "40x40": 40}
"""Sides to which images are made smaller: 64 and 25 visual tokens, where the largest have 256."""
FRAMES, RATE, CLIP_SIDE = 4, 2.0, 96
PAIR_TYPES = tuple(kind for kind in TYPES if kind != "bigger")


@dataclass(frozen=True)
class Asked:
    """Images or a clip, and questions about them."""

    media: Any
    questions: tuple[Question, ...]


def image_of(scene: Any, size: tuple[int, int], drawn: int = LARGEST) -> Image.Image:
    """A scene drawn as a square and resized to (height, width)."""
    image = Image.fromarray(render(scene, drawn))
    return image if size == (drawn, drawn) else image.resize(size[::-1], Image.Resampling.BICUBIC)


def sets(images: int, others: int) -> dict[str, list[Asked]]:
    """The sets of questions by name: all held out, and fixed by one seed."""
    data = held_out(images)

    def singles(size: tuple[int, int], count: int) -> list[Asked]:
        asked = list(zip(data.scenes, data.questions, strict=True))[:count]
        return [Asked(image_of(scene, size), questions) for scene, questions in asked]

    found = {"image": singles((LARGEST, LARGEST), images)}
    found |= {name: singles((side, side), images) for name, side in SMALLER.items()}
    found |= {name: singles(size, others) for name, size in SHAPES.items()}
    found["letterbox"] = [replace(one, media=letterboxed(one.media)) for one in found["small"]]
    return found | {"pair": pairs(others), "clip": clips(others)}


def letterboxed(image: Image.Image, size: tuple[int, int] = SHAPES["wide"]) -> Image.Image:
    """A square image in the middle of a grey one of (height, width): what is stretched to it in "wide"."""
    height, width = size
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _scenes(count: int, family: int) -> list[Any]:
    """Scenes of the held-out split behind those of single images."""
    return [sample_scene(scene_rng(Split.HELD_OUT, HELD_OUT_SEED + family, i)) for i in range(count)]


def pairs(count: int) -> list[Asked]:
    """Two images of different sizes each, and questions about one of them by name, or both."""
    scenes, asker = _scenes(2 * count, 1), Asker(np.random.default_rng(1))
    rng, found = np.random.default_rng((HELD_OUT_SEED, 1)), []
    for first, second in zip(scenes[::2], scenes[1::2], strict=True):
        media = [image_of(first, (96, 96)), image_of(second, (64, 96))]
        found.append(Asked(media, tuple(ask_pair((first, second), asker, rng, PAIR_TYPES))))
    return found


def clips(count: int) -> list[Asked]:
    """Clips of four frames, in which a shape moves."""
    asker, rng = Asker(np.random.default_rng(2)), np.random.default_rng((HELD_OUT_SEED, 2))
    found: list[Asked] = []
    for scene in _scenes(2 * count, 2):
        if len(found) < count and (clip := sample_clip(scene, rng)) is not None:
            frames = np.stack([render(one, CLIP_SIDE) for one in clip.frames(FRAMES)])
            found.append(Asked(Video(frames, fps=RATE), tuple(ask_clip(clip, asker, rng))))
    return found


def measure(pipeline: Pipeline, asked: Sequence[Asked]) -> dict[str, Any]:
    """Right answers of each type, their share with a 95 % interval, and visual tokens that answers saw on average."""
    right: dict[str, list[bool]] = {}
    tokens = []
    for one in asked:
        answers = pipeline.ask_batch([(one.media, question.text) for question in one.questions], max_tokens=8)
        for question, answer in zip(one.questions, answers, strict=True):
            is_right = answer.answer.strip() == question.answer and answer.finish_reason == "stop"
            right.setdefault(question.type, []).append(is_right)
            tokens.append(answer.visual_tokens)
    every = [hit for hits in right.values() for hit in hits]
    return {
        "right": sum(every),
        "questions": len(every),
        "interval": wilson(sum(every), len(every)),
        "macro": float(np.mean([np.mean(hits) for hits in right.values()])),
        "types": {kind: [sum(hits), len(hits)] for kind, hits in sorted(right.items())},
        "visual_tokens": float(np.mean(tokens)),
    }


def tables(result: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table of all sets, and one of single images by type; right answers in per cent."""
    methods = list(dict.fromkeys((row["selector"], row["keep"]) for row in result))
    by = {(row["set"], row["selector"], row["keep"]): row for row in result}
    names = list(dict.fromkeys(row["set"] for row in result))
    columns = [name for name in names if name not in SMALLER]
    lines = ["| selector | kept | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for method, keep in methods:
        cells = (_share(by[name, method, keep]) for name in columns)
        lines.append(f"| {method} | {keep or 'all'} | " + " | ".join(cells) + " |")
    types = sorted(by["image", "none", None]["types"])
    lines += ["", "| | kept | all | macro | " + " | ".join(types) + " |", "|---" * (4 + len(types)) + "|"]
    rows = [(f"{m}", k, by["image", m, k]) for m, k in methods]
    rows += [(f"made smaller, {name}", None, by[name, "none", None]) for name in SMALLER if name in names]
    for label, keep, row in rows:
        shares = (f"{100 * hits / total:.1f}" for hits, total in (row["types"][kind] for kind in types))
        tokens = keep or round(row["visual_tokens"])
        lines.append(
            f"| {label} | {tokens} | {_share(row)} | {100 * row['macro']:.1f} | " + " | ".join(shares) + " |"
        )
    return "\n".join(lines) + "\n"


def _share(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['right'] / row['questions']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--others", type=int, default=120, help="images of other sizes, pairs and clips")
    parser.add_argument("--only", default="", metavar="SET,SET", help="these sets alone")
    options = parser.parse_args(arguments)
    unpruned = Pipeline(options.bundle, "none")
    selectors = [None, *unpruned.bundle.manifest.selectors]
    result = []
    for name, asked in sets(options.images, options.others).items():
        if options.only and name not in options.only.split(","):
            continue
        for selector in selectors if name not in SMALLER else [None]:
            pipeline = unpruned.with_selector(selector.id if selector else "none")
            row = {"set": name, "selector": selector.name if selector else "none"}
            row |= {"keep": selector.keep if selector else None} | measure(pipeline, asked)
            print(
                row["set"],
                row["selector"],
                row["keep"],
                f"{100 * row['macro']:.1f}",
                row["types"],
                flush=True,
            )
            result.append(row)
    write_whole(options.json, json.dumps(result, indent=1) + "\n")
    if not options.only:
        print(tables(result))


if __name__ == "__main__":
    main()
