"""Pruning before the language model, inside it, and both, at equal operations: `python -m bench.schedules --work DIR`.

The demo checkpoint of LLaVA's architecture answers its held-out questions. At each share of the language model's
operations on visual tokens: divprune alone; one cut between its four layers, by every method; and both, where
divprune leaves some of the tokens to begin with. ``random`` and ``uniform`` choose by nothing at the same cut.
Recipes fitted to 36 other images (FitPrune) have up to three cuts. All settings are asked the same question in turn,
so that the times of their prefills compare; a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.schedule_chart import chart
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.fit import fit_schedule, read_request, schedule_json
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.planning import plan_export
from divprune_edge.files import write_whole
from divprune_edge.manifest import DEMO, Verification
from divprune_edge.models.cost import layered_flops, visual_by_layer
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.demo.render import render
from divprune_edge.models.demo.scenes import Split, sample_scene, scene_rng
from divprune_edge.models.schedules import METHODS, Cut, Schedule, schedule_of
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding, new_writer, write
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
from divprune_edge.runtime.lab.evaluation.scoring import is_right, wilson
from divprune_edge.runtime.vision import Vision, VisualTokens


@dataclass(frozen=True)
class Point:
    """A share of the operations, before which layer the cut is, and what divprune leaves where a cut follows."""

    share: float
    layer: int
    entering: int


POINTS = (Point(0.6, 2, 480), Point(0.3, 1, 288), Point(0.1, 1, 128))
METHOD_NAMES = (
    "fastv",
    "pyramiddrop",
    "v2drop",
    "transprune",
    "aim",
    "sparsevlm",
    "catp",
    "vla-pruner",
    "spatten",
    "fitprune",
    "random",
    "uniform",
)
"""With one cut lazyllm is fastv, and spatten, before the second layer, vla-pruner."""
FITTED, FIT_IMAGES, FIT_SEED = (0.6, 0.3), 36, 17
DECODING = Decoding(max_tokens=8)
BY_TYPE = ("divprune", "transprune", "pyramiddrop", "random")
"""What the second table shows."""


@dataclass(frozen=True)
class Setting:
    """One way to spend a share of the operations: what enters the language model, and what leaves inside it."""

    kind: str
    share: float
    entering: int
    schedule: Schedule | None

    @property
    def name(self) -> str:
        """Tells it from all others."""
        method = self.schedule.method if self.schedule is not None else "divprune"
        return f"{self.kind}-{self.share:g}-{method}"


def operations(decoder: DecoderSpec, held: Sequence[int]) -> int:
    """Return the operations of layers that read ``held`` visual tokens each."""
    return layered_flops(decoder, held, 0)


def most(decoder: DecoderSpec, all_tokens: int, share: float, held: Callable[[int], list[int]]) -> int | None:
    """Return the most tokens with which ``held`` costs no more than a share of all, None where none do."""
    limit = share * operations(decoder, [all_tokens] * decoder.layers)
    fitting = [n for n in range(1, all_tokens) if operations(decoder, held(n)) <= limit]
    return fitting[-1] if fitting else None


def settings(decoder: DecoderSpec, tokens: int, fitted: dict[float, Schedule]) -> Iterator[Setting]:
    """Yield what is compared; the unpruned model first."""
    yield Setting("unpruned", 1.0, tokens, None)
    for point in POINTS:
        share, before = point.share, point.layer
        alone = most(decoder, tokens, share, lambda n: [n] * decoder.layers)
        assert alone is not None
        yield Setting("divprune alone", share, alone, None)
        for kind, first in (("schedule alone", tokens), ("both", point.entering)):
            start = [first] * before
            left = most(
                decoder, tokens, share, lambda n, start=start: [*start, *[n] * (decoder.layers - len(start))]
            )  # type: ignore[misc]
            if left is None or left >= first:
                continue
            for name in METHOD_NAMES:
                if name == "spatten" and before == 1:
                    continue
                numbering = METHODS[name].numbering
                yield Setting(kind, share, first, Schedule(name, first, (Cut(before, left),), numbering))
        if share in fitted:
            yield Setting("fitted alone", share, tokens, fitted[share])


class Silent:
    """An export's reporter that says nothing."""

    @contextmanager
    def stage(self, title: str, weights: int = 0) -> Iterator[Callable[[str], None]]:
        """Nothing."""
        yield lambda name: None


def plan_of(entering: int, schedule: str | None = None) -> ExportPlan:
    """Return the plan of a bundle of the demo."""
    checkpoint = Checkpoint(CHECKPOINT, name=DEMO)
    return plan_export(
        checkpoint, selector="divprune", keep=entering, prune=None, precision="fp32", schedule=schedule
    )


def fits(work: Path) -> dict[float, Schedule]:
    """Return recipes for :data:`FITTED` from images that are neither trained on nor held out."""
    images = work / "fit-images"
    images.mkdir(exist_ok=True)
    for i in range(FIT_IMAGES):
        file = images / f"{i:02}.png"
        if not file.exists():
            scene = sample_scene(scene_rng(Split.DEMO, FIT_SEED, i))
            Image.fromarray(render(scene, 96)).save(file)
    plan, found = plan_of(576), {}
    for share in FITTED:
        file = work / f"fit-{share:g}.json"
        if not file.exists():
            fit_schedule(plan, read_request(images, None, share, 3), file, Silent())
        found[share] = schedule_of(str(file), plan.spec.decoder.layers, 576)
    return found


def export(setting: Setting, work: Path) -> Path:
    """Return the folder of a setting's bundle, exported if it is not there."""
    folder = work / setting.name.replace(" ", "-")
    if folder.exists():
        return folder
    file = None
    if setting.schedule is not None:
        file = str(work / f"{folder.name}.json")
        write_whole(Path(file), schedule_json(setting.schedule))
    with plan_of(setting.entering, file).checkpoint:
        export_bundle(
            plan_of(setting.entering, file),
            folder,
            force=False,
            verify=lambda plan, place: Verification(status="not verified", reason="a measurement"),
            report=Silent(),
        )
    return folder


class Asked:
    """A setting's bundle, opened; it shares what the vision encoder gives with the others."""

    def __init__(self, setting: Setting, folder: Path, threads: int) -> None:
        self.setting, self.bundle = setting, Bundle.open(folder)
        self.backend = open_backend(self.bundle, "cpu", threads)
        self.prompt = self.bundle.prompt_encoder()

    def answer(self, visual: VisualTokens, question: str) -> tuple[str, float]:
        """Return the answer and the milliseconds of its prefill."""
        manifest = self.bundle.manifest
        language = manifest.language_model
        prompt = self.prompt.encode([Turn("user", question, images=1)], [len(visual.rows)])
        prompt = prompt.placed(language.embedding_rows, visual.images, language.axes)
        writer = new_writer(manifest, self.prompt.tokenizer.model, prompt, DECODING)
        session = self.backend.session()
        write(session, {session.add(visual.tokens): writer})
        result = writer.result()
        return result.text, result.prefill_ms


def ask(asked: Sequence[Asked], images: int, journal: Path) -> None:
    """Ask every setting every question, image by image, and note what came of it."""
    data = load_dataset("demo", images)
    done = {line["image"] for line in read(journal)}
    vision = {one.setting.entering: Vision(one.bundle, one.backend) for one in asked}
    graphs = {one.setting.entering: one.bundle.manifest.selectors[0] for one in asked}
    for image in data.images:
        if image.name in done:
            continue
        seen = {}
        for entering, eye in vision.items():
            graph = graphs[entering]
            seen[entering] = eye.select(eye.encode(eye.read([image.open()]), [graph]), graph)
        found: dict[str, list[tuple[str, bool, float]]] = {one.setting.name: [] for one in asked}
        for question in image.questions:
            for one in asked:
                text, ms = one.answer(seen[one.setting.entering], question.text)
                found[one.setting.name].append((question.kind, is_right(text, question.answers), ms))
        with journal.open("a") as stream:
            stream.write(json.dumps({"image": image.name, "answers": found}) + "\n")


def read(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, each of which is an image's."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def rows(settings: Sequence[Setting], decoder: DecoderSpec, journal: Path) -> list[dict[str, Any]]:
    """Return what each setting answered right, by type and with 95 % intervals, and its median prefill."""
    lines = read(journal)
    whole = operations(decoder, [settings[0].entering] * decoder.layers)
    result = []
    for setting in settings:
        answers = [answer for line in lines for answer in line["answers"][setting.name]]
        types: dict[str, list[int]] = {}
        for kind, right, _ in answers:
            count = types.setdefault(kind, [0, 0])
            count[0] += right
            count[1] += 1
        held = [setting.entering] * decoder.layers
        if setting.schedule is not None:
            held = list(visual_by_layer(setting.schedule, decoder.layers))
        right = sum(hits for hits, _ in types.values())
        result.append(
            {
                "kind": setting.kind,
                "share": setting.share,
                "method": setting.schedule.method if setting.schedule else "divprune",
                "visual_tokens": held,
                "operations": operations(decoder, held) / whole,
                "cache_rows": sum(held) / len(held),
                "right": right,
                "questions": len(answers),
                "interval": wilson(right, len(answers)),
                "macro": statistics.fmean(hits / total for hits, total in types.values()),
                "types": {
                    kind: {"right": hits, "questions": total, "interval": wilson(hits, total)}
                    for kind, (hits, total) in sorted(types.items())
                },
                "prefill_ms": statistics.median(ms for *_, ms in answers),
            }
        )
    return result


def tables(result: Sequence[dict[str, Any]]) -> str:
    """Return two tables in Markdown: all settings, and those of :data:`BY_TYPE` by type of question."""
    return f"{_overview(result)}\n{_by_type(result)}"


def _overview(result: Sequence[dict[str, Any]]) -> str:
    """A row for each method, a column for each share and kind: per cent right, its interval, and the prefill."""
    whole, columns = (
        result[0],
        [(point.share, kind) for point in POINTS for kind in ("schedule alone", "both")],
    )
    found: dict[tuple[float, str, str], dict[str, Any]] = {}
    for row in result[1:]:
        if row["kind"] == "divprune alone":
            found |= {(row["share"], kind, row["kind"]): row for _, kind in columns}
        elif row["kind"] == "fitted alone":
            found[row["share"], "schedule alone", "fitprune, fitted"] = row
        else:
            found[row["share"], row["kind"], row["method"]] = row
    cut = {key[:2] for key in found if key[2] != "divprune alone"}
    columns = [column for column in columns if column in cut]
    names = [f"{share:g}, {kind.removeprefix('schedule ')}" for share, kind in columns]
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---:|" * len(columns)]
    for method in dict.fromkeys(method for *_, method in found):
        cells = []
        for share, kind in columns:
            row = found.get((share, kind, method))
            cells.append(
                "" if row is None else f"{_share(row)} {row['prefill_ms'] / whole['prefill_ms']:.2f}"
            )
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return f"no pruning: {_share(whole)} 1.00\n\n" + "\n".join(lines) + "\n"


def _by_type(result: Sequence[dict[str, Any]]) -> str:
    """A row for each setting, a column for each type: per cent right and its interval."""
    kinds = sorted(result[0]["types"])
    lines = [
        f"| operations | setting | tokens by layer | {' | '.join(kinds)} |",
        "|---|---|---|" + "---:|" * len(kinds),
    ]
    for row in result:
        if row["kind"] != "unpruned" and row["method"] not in BY_TYPE:
            continue
        name = row["kind"] if row["method"] == "divprune" else f"{row['kind']}, {row['method']}"
        cells = [_share(row["types"][kind]) for kind in kinds]
        layers = "/".join(map(str, row["visual_tokens"]))
        lines.append(f"| {row['share']:g} | {name} | {layers} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['right'] / row['questions']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and answers so far")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path, help="an SVG")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    decoder = plan_of(576).spec.decoder
    begun = time.perf_counter()
    every = list(settings(decoder, 576, fits(options.work)))
    asked = [Asked(setting, export(setting, options.work), options.threads) for setting in every]
    print(f"{len(asked)} settings after {time.perf_counter() - begun:.0f} s", flush=True)
    journal = options.work / "answers.jsonl"
    ask(asked, options.images, journal)
    result = rows(every, decoder, journal)
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1) + "\n")
    if options.chart is not None:
        write_whole(options.chart, chart(result) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
