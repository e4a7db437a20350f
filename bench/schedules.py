"""Pruning before the language model, inside it, and both, at equal operations: `python -m bench.schedules --work DIR`.

The demo checkpoint of LLaVA's architecture answers its held-out questions. At each share of the language model's
operations on visual tokens: divprune alone; one cut between its four layers, by every method; and both, where
divprune leaves some of the tokens to begin with. ``random`` and ``uniform`` choose by nothing at the same cut.
Recipes fitted to 36 other images (FitPrune) have up to three cuts. What was answered is noted, so that a run that was
interrupted goes on; then the time to the first token is measured anew, all settings in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from bench.schedule_chart import chart
from bench.schedule_settings import Setting, settings
from bench.schedule_tables import rows, tables
from divprune_edge.export.bundle import export_bundle
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.fit import fit_schedule, read_request, schedule_json
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.planning import plan_export
from divprune_edge.files import write_whole
from divprune_edge.manifest import DEMO, Verification
from divprune_edge.models.demo import CHECKPOINT, IMAGE
from divprune_edge.models.demo.render import render
from divprune_edge.models.demo.scenes import Split, sample_scene, scene_rng
from divprune_edge.models.schedules import Schedule, schedule_of
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding, new_writer, write
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
from divprune_edge.runtime.lab.evaluation.scoring import is_right
from divprune_edge.runtime.lab.profiling.measure import Variant, Workload, measure
from divprune_edge.runtime.vision import VisualTokens

FITTED, FIT_IMAGES, FIT_SEED = (0.6, 0.3), 36, 17
DECODING = Decoding(max_tokens=8)
WORKLOAD, WARM_UP = Workload(IMAGE, "What does the sign say?", 1), 2
"""What the time is measured with, and the rounds before it counts."""


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


def opened(setting: Setting, folder: Path, threads: int) -> Variant:
    """Return a setting's bundle with its selector, ready to be asked."""
    bundle = Bundle.open(folder)
    backend = open_backend(bundle, "cpu", threads)
    return Variant(setting.name, bundle, bundle.manifest.selectors[0], backend, bundle.prompt_encoder())


def answer(variant: Variant, seen: VisualTokens, question: str) -> str:
    """Return the answer to a question about an image that was seen already."""
    manifest = variant.bundle.manifest
    prompt = variant.prompt.encode_seen([Turn("user", question, images=1)], seen.images)
    writer = new_writer(manifest, variant.prompt.tokenizer.model, prompt, DECODING)
    session = variant.backend.session()
    write(session, {session.add(seen.tokens): writer})
    return writer.result().text


def ask(variants: Sequence[Variant], images: int, journal: Path) -> None:
    """Ask every setting every question, image by image, and note what came of it."""
    data = load_dataset("demo", images)
    done = {line["image"] for line in read(journal)}
    entering = {
        variant.title: variant.bundle.manifest.visual_tokens(variant.selector) for variant in variants
    }
    eyes = {entering[variant.title]: variant for variant in variants}
    for image in data.images:
        if image.name in done:
            continue
        seen = {
            count: eye.vision.see(eye.vision.read([image.open()]), eye.selector)
            for count, eye in eyes.items()
        }
        found: dict[str, list[tuple[str, bool]]] = {variant.title: [] for variant in variants}
        for question in image.questions:
            for variant in variants:
                text = answer(variant, seen[entering[variant.title]], question.text)
                found[variant.title].append((question.kind, is_right(text, question.answers)))
        with journal.open("a") as stream:
            stream.write(json.dumps({"image": image.name, "answers": found}) + "\n")


def read(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, each of which is an image's."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and answers so far")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path, help="an SVG")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=40, help="of the measurement of time")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    decoder = plan_of(576).spec.decoder
    begun = time.perf_counter()
    every = list(settings(decoder, 576, fits(options.work)))
    variants = [opened(setting, export(setting, options.work), options.threads) for setting in every]
    print(f"{len(variants)} settings after {time.perf_counter() - begun:.0f} s", flush=True)
    journal = options.work / "answers.jsonl"
    ask(variants, options.images, journal)
    print(f"all answered after {time.perf_counter() - begun:.0f} s", flush=True)
    timed = measure(variants, WORKLOAD, options.rounds, WARM_UP)
    result = rows(every, decoder, read(journal), [found.answers for found in timed])
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1) + "\n")
    if options.chart is not None:
        write_whole(options.chart, chart(result) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
