"""Every graph that can become an engine, parsed and built by a real TensorRT: TensorRT-RTX, which needs no GPU for it.

    python tests/tensorrt_matrix.py                       all of it, as a table (make tensorrt)
    python tests/tensorrt_matrix.py --cover --json FILE   cases in which every pair of choices comes at least once

A case is a checkpoint, a precision, a graph and a GPU. What does not build fails with TensorRT's own words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from checkpoints import NEXT, ONEVISION, SIGLIP, TILED, VIDEO_TEMPLATE, make_checkpoint
from exporting import export, plan_of
from qwen_checkpoints import QWEN, make_qwen_checkpoint

from divprune_edge.errors import DivpruneError
from divprune_edge.export.add_selector import add_selector
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.profiles import ASSEMBLE, LANGUAGE, VISION, make_limits, vision_profiles
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.signals import CLASS_TOKEN
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import edition
from divprune_edge.runtime.engines.graphs import BuildJob, Graph, chosen_selectors, graphs_of
from divprune_edge.runtime.engines.progress import BuildProgress

DIALECTS = ("static", "decomposed")
PRECISIONS = ("fp32", "fp16", "int4")
BY_SIZE = f"{VISION} by size"
"""With a profile for each grid that images may have, as for TensorRT; for TensorRT-RTX one spans them."""
GREEDY = " greedy"
"""Behind the name of a language model that says the next id itself."""
_LANGUAGES = tuple(f"{LANGUAGE} {dialect}{end}" for dialect in DIALECTS for end in ("", GREEDY))
GRAPHS = (VISION, BY_SIZE, ASSEMBLE, *_LANGUAGES, *SELECTORS)
_SMALL = {"hidden_size": 64, "intermediate_size": 128}


def _tiled(options: dict[str, Any]) -> dict[str, Any]:
    return {
        **options,
        "text": _SMALL,
        "vision": {**_SMALL, "num_attention_heads": 2, "image_size": 35},
    }


_ONEVISION_CLIPS = {
    **_tiled(ONEVISION),
    "llava": {**ONEVISION["llava"], "video_token_id": 3},
    "template": VIDEO_TEMPLATE,
}
_ANY_SIZE = {
    "text": {**_SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    "vision": {**_SMALL, "num_heads": 4},
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "demo": {},
    # Biases, tied embeddings, grouped queries; an image that is no multiple of its patches.
    "odd qwen2": {
        "kind": "qwen2",
        "tied": True,
        "text": {**_SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
        "vision": {**_SMALL, "num_attention_heads": 2, "image_size": 38},
    },
    # Heads of 48 that do not add up to the width, one for all keys and values; other activations; a patched RoPE.
    "odd llama": {
        "text": {
            **_SMALL,
            "head_dim": 48,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        "vision": {**_SMALL, "num_attention_heads": 4, "hidden_act": "gelu"},
        "llava": {"projector_hidden_act": "relu", "vision_feature_layer": [-3, -1]},
    },
    # No class token, patches with a bias; the layout of LLaVA-Interleave.
    "odd siglip": {
        "kind": "qwen2",
        "tower": SIGLIP,
        "tied": True,
        "text": {**_SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
        "vision": {**_SMALL, "num_attention_heads": 2, "image_size": 38, "vision_use_head": False},
        "llava": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    },
    # Images of several tiles: rows of one token each, and rows of four that are weighted.
    "next": _tiled(NEXT),
    "next, tile": _tiled(NEXT),
    "onevision": _tiled(ONEVISION),
    "onevision, tile": _tiled(ONEVISION),
    # Images of any size, resized to one of a few: with windows, and with features behind the tokens.
    "qwen2.5-vl": {"family": "qwen2_5_vl", **_ANY_SIZE},
    "qwen3-vl": {"family": "qwen3_vl", **_ANY_SIZE},
    # Clips, too: rows of all frames, or those of one at a time.
    "onevision, clips": _ONEVISION_CLIPS,
    "onevision, frames": _ONEVISION_CLIPS,
    "qwen2.5-vl, clips": {"family": "qwen2_5_vl", **_ANY_SIZE},
    "qwen3-vl, clips": {"family": "qwen3_vl", **_ANY_SIZE},
    "qwen3-vl, frames": {"family": "qwen3_vl", **_ANY_SIZE},
}
"""Name -> arguments of :func:`checkpoints.make_checkpoint`, or of :func:`qwen_checkpoints.make_qwen_checkpoint`; the
demo is there already. Selectors pick from each tile in those that end in ``tile``; those that end in ``clips`` take
clips, and from those that end in ``frames`` selectors pick from each frame of these."""
FRAMES = 6
"""Of a clip, at most."""
SLOTS = 4
"""Sequences that a language model's engine decodes together."""


@dataclass(frozen=True)
class Case:
    checkpoint: str
    precision: str
    graph: str
    sm: int

    @property
    def place(self) -> tuple[int, ...]:
        """Where it stands in the table."""
        names = (list(CHECKPOINTS), PRECISIONS, GRAPHS)
        values = (self.checkpoint, self.precision, self.graph)
        return (*(known.index(value) for known, value in zip(names, values, strict=True)), self.sm)

    @property
    def choices(self) -> tuple[tuple[str, object], ...]:
        return tuple(asdict(self).items())


@dataclass(frozen=True)
class Outcome:
    """What became of a case: seconds and bytes of its engine, or TensorRT's words."""

    case: Case
    seconds: float = 0.0
    size: int = 0
    words: str = ""


def all_cases() -> list[Case]:
    cases = itertools.starmap(Case, itertools.product(CHECKPOINTS, PRECISIONS, GRAPHS, TENSORRT_RTX.sms))
    return [case for case in cases if serves(case.checkpoint, case.graph)]


def serves(checkpoint: str, graph: str) -> bool:
    """Whether a checkpoint has a graph: one without a class token or without a square grid lacks some selectors."""
    facts = CHECKPOINTS[checkpoint]
    is_tiled, has_any_size = (facts.get("family") in families for families in (TILED, QWEN))
    if graph not in SELECTORS:
        return {ASSEMBLE: is_tiled or has_any_size, BY_SIZE: has_any_size}.get(graph, True)
    if has_any_size:
        merges = (
            SELECTORS[graph].merge is not None and facts["family"] == "qwen3_vl"
        )  # which has stacked features
        return not SELECTORS[graph].signals and not merges
    if is_tiled and SELECTORS[graph].raster:
        return False
    return facts.get("tower") != SIGLIP or not {*SELECTORS[graph].signals} & {*CLASS_TOKEN}


def covering_cases() -> list[Case]:
    """Return cases in which every pair of two choices occurs, taken greedily."""
    cases, chosen = all_cases(), []
    missing = {pair for case in cases for pair in itertools.combinations(case.choices, 2)}
    while missing:
        best = max(cases, key=lambda case: len(missing.intersection(itertools.combinations(case.choices, 2))))
        missing.difference_update(itertools.combinations(best.choices, 2))
        chosen.append(best)
    return chosen


def run(cases: Iterable[Case], folder: Path) -> Iterator[Outcome]:
    """Export what the cases need, each bundle once, and build."""
    edition.use(TENSORRT_RTX)
    ordered = sorted(cases, key=lambda case: case.place)
    for (checkpoint, precision), group in itertools.groupby(
        ordered, key=lambda c: (c.checkpoint, c.precision)
    ):
        place = folder / f"{checkpoint}-{precision}".replace(" ", "-")
        graphs = export_graphs(checkpoint, precision, place)
        for case in group:
            yield build(case, *graphs[case.graph])


def export_graphs(checkpoint: str, precision: str, folder: Path) -> dict[str, tuple[Bundle, Graph]]:
    """Return the graph of every name of :data:`GRAPHS`."""
    options = CHECKPOINTS[checkpoint]
    make = make_qwen_checkpoint if options.get("family") in QWEN else make_checkpoint
    source = make(folder / "checkpoint", **options) if options else CHECKPOINT
    keep = 58 if checkpoint == "demo" else 9
    kind = checkpoint.rpartition(", ")[2]
    asked: dict[str, Any] = {"per": {"tile": "tile", "frames": "frame"}.get(kind, "image")}
    asked |= {"frames": FRAMES} if kind in ("clips", "frames") else {}
    found = {}
    for dialect, end in itertools.product(DIALECTS, ("", GREEDY)):
        plan = plan_of(
            source, keep, precision=precision, dialect=dialect, signals="all", greedy=bool(end), **asked
        )
        place = export(plan, folder / f"{dialect}{end}".replace(" ", "-")).folder
        if dialect == DIALECTS[0] and not end:
            for name in SELECTORS:
                if serves(checkpoint, name):
                    add_selector(place, name, keep=keep, prune=None, force=True, verify=False)
        bundle = Bundle.open(place)
        selectors = chosen_selectors(bundle, "all,none")
        limits = make_limits(bundle.manifest, selectors, None, SLOTS)
        for graph in graphs_of(bundle, selectors, limits, "1.7", TENSORRT_RTX):
            name = graph.name.removesuffix(f"-{keep}")
            found.setdefault(f"{name} {dialect}{end}" if name == LANGUAGE else name, (bundle, graph))
            if name == VISION:
                found[BY_SIZE] = bundle, replace(graph, profiles=vision_profiles(bundle.manifest))
    return found


def build(case: Case, bundle: Bundle, graph: Graph) -> Outcome:
    from divprune_edge.runtime.engines import compile as compiler

    data = tuple(map(bundle.file, graph.data))
    job = BuildJob(graph.name, bundle.file(graph.file), graph.profiles, False, None, None, data, (case.sm,))
    start = time.perf_counter()
    try:
        engine = compiler.make_engine(job, None, BuildProgress())
    except DivpruneError as error:
        return Outcome(case, words=str(error))
    return Outcome(case, time.perf_counter() - start, memoryview(engine).nbytes)


def print_table(outcomes: Iterable[Outcome]) -> None:
    """One row per checkpoint, precision and graph, one column per GPU."""
    head = f"{'checkpoint':19}{'precision':11}{'graph':27}" + "".join(
        f"{f'sm_{sm}':>16}" for sm in TENSORRT_RTX.sms
    )
    print(head + "\n" + "-" * len(head))
    for key, row in itertools.groupby(
        outcomes, key=lambda o: (o.case.checkpoint, o.case.precision, o.case.graph)
    ):
        cells = {o.case.sm: "REFUSED" if o.words else f"{o.seconds:.1f} s {o.size / 1e6:.1f} MB" for o in row}
        name = f"{key[0]:19}{key[1]:11}{key[2]:27}"
        print(name + "".join(f"{cells.get(sm, ''):>16}" for sm in TENSORRT_RTX.sms), flush=True)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build every graph with TensorRT-RTX.")
    parser.add_argument(
        "--cover", action="store_true", help="only so many cases that every pair of choices occurs"
    )
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, help="only its cases")
    parser.add_argument("--json", type=Path, help="write the outcomes")
    options = parser.parse_args()
    cases = covering_cases() if options.cover else all_cases()
    cases = [case for case in cases if options.checkpoint in (None, case.checkpoint)]
    outcomes: list[Outcome] = []
    trt = TENSORRT_RTX.load()
    with _folder() as folder:
        print(f"TensorRT-RTX {trt.__version__}: parsed and built, not run (E2b).")
        print_table(outcomes.append(one) or one for one in run(cases, folder))
    refused = [one for one in outcomes if one.words]
    for one in refused:
        print(f"{one.case}: {one.words}")
    print(f"{len(outcomes) - len(refused)} of {len(cases)} built.")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1), encoding="utf-8")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
