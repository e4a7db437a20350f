"""``python -m export fit``: FitPrune's recipe for a checkpoint, from its attention to a few dozen images.

The decoder's layers are read one at a time and run on all prompts before the next one is read. What leaves a layer is
on disk, beside the result; a run that was interrupted goes on behind the last layer that it finished.

::

    .NAME.fit/state.json          what is measured, and how many layers have been
    .NAME.fit/prompt-0.npz …      positions and visual rows; what is added behind the first layers
    .NAME.fit/hidden-7/0.npy …    hidden states that enter layer 7
    .NAME.fit/layer-6.npz         attention in layer 6
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.export.arrays import widen
from divprune_edge.export.bundle import Reporter
from divprune_edge.export.examples import QUESTIONS, Examples, images_in, open_examples
from divprune_edge.export.numpy_decoder import read_layer
from divprune_edge.export.plan import ExportPlan
from divprune_edge.files import write_whole
from divprune_edge.models.cost import layered_flops
from divprune_edge.models.schedules import Schedule
from divprune_edge.models.schedules.fitting import Fit, MeasuredAttention, fit
from divprune_edge.models.schedules.method import query_rows
from divprune_edge.scratch import scratch
from divprune_edge.strict_json import read_text
from divprune_edge.version import __version__

STATE = "state.json"
_MOST_QUESTIONS = 1 << 20
"""Bytes of a file of questions."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FitRequest:
    """What is asked for: a share of the operations with at most so many cuts, by questions about images."""

    images: tuple[Path, ...]
    questions: tuple[str, ...]
    target: float
    cuts: int


def read_request(images: Path, questions: Path | None, target: float, cuts: int) -> FitRequest:
    """Return a request that was checked.

    Raises:
        UserError: no images or questions, or numbers out of range.
    """
    if not 0 < target < 1:
        raise UserError(
            f"--target-flops is {target}, expected a share between 0 and 1, such as 0.4.",
            code="target-flops-out-of-range",
        )
    if cuts < 1:
        raise UserError(f"--cuts is {cuts}, expected at least 1.", code="count-out-of-range")
    asked = QUESTIONS if questions is None else _questions(questions)
    return FitRequest(tuple(images_in(images, "fit-images-missing")), asked, target, cuts)


def fit_schedule(plan: ExportPlan, request: FitRequest, output: Path, report: Reporter) -> Fit:
    """Measure what is not measured yet, fit the schedule, and write it to ``output``.

    Raises:
        UserError: an image that cannot be read, a target out of reach, or another run that writes the same file.
        OSError: it cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    busy = f"'{output}' is being fitted by another process: wait for it, or name another --output."
    with scratch(output.parent, output.name, busy=busy) as work:
        measured = _Measurement(output.with_name(f".{output.name}.fit"), plan, request)
        if not measured.begun:
            with report.stage("visual tokens and prompts", len(request.images)) as progress:
                # Nothing holds the encoder behind this: the decoder's layers want the memory.
                measured.begin(open_examples(plan, work, "fit"), progress)
        layers = plan.spec.decoder.layers
        goes_on = (
            f"attention, from layer {measured.layers} on" if measured.layers else "attention, layer by layer"
        )
        with report.stage(goes_on, layers - measured.layers) as progress:
            while measured.layers < layers:
                progress(f"layer {measured.layers}")
                measured.go_on()
        found = fit(
            measured.attention(),
            plan.visual_tokens,
            request.target,
            request.cuts,
            partial(layered_flops, plan.spec.decoder, vocabulary=0),
            max(1, plan.spec.stacked),
        )
        write_whole(output, schedule_json(found.schedule))
        measured.remove()
    return found


def schedule_json(schedule: Schedule) -> str:
    """Return a schedule as ``--schedule`` reads it."""
    data = {
        "method": schedule.method,
        "visual_tokens": schedule.visual,
        "numbering": schedule.numbering,
        "cuts": [{"before": cut.before, "keep": cut.keep} for cut in schedule.cuts],
    }
    return json.dumps(data, indent=2) + "\n"


class _Measurement:
    """What is on disk of a run."""

    def __init__(self, place: Path, plan: ExportPlan, request: FitRequest) -> None:
        self._place, self._plan, self._request = place, plan, request
        self._key = _key(plan, request)
        self._count = len(request.images)
        self.begun, self.layers = False, 0
        state = self._state()
        if state is None:
            shutil.rmtree(place, ignore_errors=True)
        else:
            self.begun, self.layers = True, state

    def begin(self, examples: Examples, progress: Any) -> None:
        """Look at every image, and write what enters the first layer."""
        plan, questions = self._plan, self._request.questions
        self._place.mkdir()
        self._hidden(0).mkdir()
        embedding = plan.checkpoint.read(f"{plan.names.decoder}embed_tokens.weight")
        for i, file in enumerate(self._request.images):
            prompt, tokens = examples.prompt(file, questions[i % len(questions)])
            ids = np.asarray(prompt.ids, np.int64)
            visual, text = np.flatnonzero(ids >= len(embedding)), np.flatnonzero(ids < len(embedding))
            rows = np.zeros((len(ids), tokens.shape[1]), np.float32)
            rows[text, : plan.spec.width] = widen(embedding[ids[text]])
            rows[visual] = tokens[ids[visual] - len(embedding)]
            hidden, *stacked = np.split(rows, 1 + plan.spec.stacked, axis=1)
            np.save(self._hidden(0) / f"{i}.npy", hidden)
            np.savez(
                self._place / f"prompt-{i}.npz",
                positions=prompt.positions,
                visual=visual,
                text=text,
                stacked=np.stack(stacked) if stacked else np.zeros((0, 0, 0), np.float32),
            )
            progress(file.name)
        self._done(0)

    def go_on(self) -> None:
        """Run the next layer on every prompt."""
        plan, index = self._plan, self.layers
        layer = read_layer(plan.checkpoint, plan.names.decoder, plan.spec.decoder, index)
        plan.checkpoint.close()  # what was read of its files would stay mapped; they open again where they are needed
        entering, leaving = self._hidden(index), self._hidden(index + 1)
        shutil.rmtree(leaving, ignore_errors=True)
        leaving.mkdir()
        found: dict[str, Array] = {}
        for i in range(self._count):
            prompt = self._prompt(i)
            look = _Look(prompt["visual"], prompt["text"])
            x = layer.run(np.load(entering / f"{i}.npy"), prompt["positions"], look)
            if index < len(prompt["stacked"]):
                x = x + prompt["stacked"][index]
            np.save(leaving / f"{i}.npy", x)
            found |= {f"self-{i}": look.itself, f"cross-{i}": look.cross}
        np.savez(self._place / f"layer-{index}.npz", **found)  # type: ignore[arg-type]
        self._done(index + 1)
        shutil.rmtree(entering, ignore_errors=True)

    def attention(self) -> list[MeasuredAttention]:
        """Return what was measured of each prompt."""
        layers = []
        for index in range(self.layers):
            with np.load(self._place / f"layer-{index}.npz") as file:
                layers.append(dict(file))
        return [
            MeasuredAttention(
                itself=np.stack([layer[f"self-{i}"] for layer in layers]),
                cross=np.stack([layer[f"cross-{i}"] for layer in layers]),
            )
            for i in range(self._count)
        ]

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self._place, ignore_errors=True)

    def _hidden(self, index: int) -> Path:
        return self._place / f"hidden-{index}"

    def _prompt(self, i: int) -> dict[str, Any]:
        with np.load(self._place / f"prompt-{i}.npz") as file:
            return dict(file)

    def _done(self, layers: int) -> None:
        write_whole(self._place / STATE, json.dumps({"key": self._key, "layers": layers}))
        self.begun, self.layers = True, layers

    def _state(self) -> int | None:
        """Return how many layers of this very measurement are done; None where there is nothing of it."""
        try:
            state = json.loads((self._place / STATE).read_text(encoding="utf-8"))
            return int(state["layers"]) if state["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class _Look:
    """Adds up the strongest head's attention to visual tokens: of these to each other, and of the text behind them."""

    def __init__(self, visual: npt.NDArray[np.int64], text: npt.NDArray[np.int64]) -> None:
        self._visual, self._asked = visual, query_rows("asked", visual, text)
        self.itself, self.cross = (np.zeros(len(visual), np.float32) for _ in range(2))

    def __call__(self, first: int, shares: Array) -> None:
        strongest = shares[:, :, self._visual].max(axis=0)
        rows = np.arange(first, first + len(strongest))
        self.itself += strongest[np.isin(rows, self._visual)].sum(axis=0) / np.float32(len(self._visual))
        self.cross += strongest[np.isin(rows, self._asked)].sum(axis=0)


def _key(plan: ExportPlan, request: FitRequest) -> str:
    """Return what tells one measurement from another; the target is no part of it."""
    checkpoint = plan.checkpoint
    weights = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    facts = {
        "version": __version__,
        "config": checkpoint.config,
        "weights": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights],
        "adapter": None if checkpoint.adapter_source is None else checkpoint.adapter_source.sha256,
        "preprocessing": plan.preprocessing.model_dump_json(),
        "template": plan.prompt.template,
        "selector": [plan.selector.name, plan.keep, plan.per, plan.numbering],
        "encoder_cut": repr(plan.spec.encoder_cut),
        "questions": request.questions,
        "images": [hashlib.sha256(path.read_bytes()).hexdigest() for path in request.images],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _questions(path: Path) -> tuple[str, ...]:
    text = read_text(
        path,
        code="questions-unreadable",
        advice="give a text file with a question on each line",
        most=_MOST_QUESTIONS,
    )
    found: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(f"'{path}' has no questions: write one on each line.", code="questions-missing")
    return tuple(found)
