"""Every method through the exported chain: what stays and what is answered, against PyTorch in transformers' layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree
from checkpoints import make_checkpoint
from eager_schedules import EAGER, Eager, eager_transprune, embed, open_text_model, run
from exporting import Bundle, export, plan_of
from images_made import noise_image
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.manifest import ScheduleInfo
from divprune_edge.models.schedules import METHODS

STEPS = 6
KEEP = 20
DIALECTS = ("onnxruntime", "static", "decomposed")
RECIPE = {
    "method": "fitprune",
    "cuts": [{"before": 2, "keep": 13}, {"before": 3, "keep": 8}, {"before": 6, "keep": 3}],
}
LOOKS = [name for name, method in METHODS.items() if method.watches]
ELSEWHERE = ("pyramiddrop", "fastv", "v2drop")
"""In ``test_schedules.py`` in every dialect, and of two images."""
CASES = [(name, "portable", images) for name in LOOKS for images in (1, 2)]
CASES += [(name, dialect, 1) for name in LOOKS if name not in ELSEWHERE for dialect in DIALECTS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of eight layers, 25 visual tokens, and heads that every dialect takes."""
    text = {"num_hidden_layers": 8, "num_key_value_heads": 2, "head_dim": 16}
    return make_checkpoint(tmp_path_factory.mktemp("eight") / "checkpoint", text=text)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return open_text_model(checkpoint)


def exported(checkpoint: Path, name: str, dialect: str, folder: Path) -> Bundle:
    options: dict[str, Any] = {"numbering": "compact"} if dialect == "onnxruntime" else {}
    schedule = name
    if name == "fitprune":
        recipe = folder / "recipe.json"
        recipe.write_text(json.dumps(RECIPE))
        schedule = str(recipe)
    plan = plan_of(checkpoint, KEEP, schedule=schedule, dialect=dialect, precision="fp32", **options)
    return export(plan, folder / "bundle")


def eager(schedule: ScheduleInfo) -> Eager:
    if schedule.method == "transprune":
        return eager_transprune(schedule.since, schedule.cuts[-1].before - 1)
    return EAGER[schedule.method]


@pytest.mark.parametrize(("name", "dialect", "images"), CASES)
def test_what_stays_and_what_follows(
    name: str, dialect: str, images: int, checkpoint: Path, model: Any, tmp_path: Path
) -> None:
    """Of several images each is judged by itself."""
    bundle = exported(checkpoint, name, dialect, tmp_path)
    schedule = bundle.manifest.language_model.schedule
    assert schedule is not None and schedule.method == name
    cuts = [(cut.before, cut.keep) for cut in schedule.cuts]
    chat = Pipeline(bundle.folder).chat([noise_image(60, 80, 5 + i) for i in range(images)])
    answer = chat.ask("how many red circle are there?", max_tokens=STEPS, ignore_eos=True)

    ids = np.array(chat._cached[: answer.prompt_tokens])
    visual = np.flatnonzero(ids >= bundle.rows)
    rows, _ = embed(model, ids, chat._pipeline.backend.to_host(chat._seen.tokens)[0])
    wanted = run(
        model,
        rows,
        np.split(visual, images),
        cuts,
        eager(schedule),
        renumber=schedule.numbering == "compact",
        steps=STEPS,
        forbidden=[*bundle.manifest.prompt.forbidden_ids],
    )
    kept = [visual[picks].tolist() for picks in chat._session.kept(chat._slot)]
    assert kept == wanted.kept
    agree(answer.token_ids, wanted.tokens, wanted.margins)


def test_a_history_is_a_second_ranking(checkpoint: Path, tmp_path: Path) -> None:
    """What was looked at in steps before stays; without a history, and for the next question, attention alone says."""
    bundle = exported(checkpoint, "vla-pruner", "portable", tmp_path)
    pipeline, keep = Pipeline(bundle.folder), bundle.manifest.language_model.schedule.cuts[0].keep
    image = noise_image(60, 80, 5)

    def kept(history: Any = None) -> list[int]:
        chat = pipeline.chat([image])
        if history is not None:
            chat.give(history=[history])
        chat.ask("how many red circle are there?", max_tokens=1)
        (found,) = chat._session.kept(chat._slot)
        return found.tolist()

    alone = kept()
    others = [i for i in range(KEEP) if i not in alone]
    history = np.zeros(KEEP, np.float32)
    history[others[:2]] = 2, 1
    both = kept(history)
    assert len(both) == len(alone) == keep
    assert set(others[:2]) <= set(both), "ranks 0 and 1 of the history"
    assert both != alone
    later = pipeline.chat(None)
    later.give(history=[history])
    for shown in (None, image):
        later.ask("how many red circle are there?", image=shown, max_tokens=1)
    assert set(others[:2]) <= set(later._session.kept(later._slot)[0]), "it waits for an image"
    with refused("schedule-values", "history", 3, KEEP):
        kept(np.zeros(3))
    with refused("schedule-values", "vla-pruner", "past", "history"):
        pipeline.chat(None).give(past=[history])
    for wrong in (
        *(None, 3.0, "history", history, [None], ["history"], [["1"] * KEEP], [[True] * KEEP]),
        *([[[0.0], [1.0, 2.0]]], [history[None]], [np.full(KEEP, np.nan)], [np.full(KEEP, 1e39)]),
    ):
        with refused("schedule-values", "history"):
            pipeline.chat([image]).give(history=wrong)
    other = Pipeline(exported(checkpoint, "fastv", "portable", tmp_path / "other").folder)
    with refused("schedule-values", "fastv", "history"):
        other.chat(None).give(history=[history])
