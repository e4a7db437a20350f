"""Pruning inside the language model: what stays and what is answered, against PyTorch that takes tokens out eagerly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint
from exporting import Bundle, export, plan_of
from PIL import Image
from schedule_reference import EagerDecoder

from divprune_edge import Pipeline

LAYERS, STEPS = 6, 8
QUESTIONS = ("what is in the picture?", "how many red circle are there?")
METHODS = ("pyramiddrop", "fastv", "v2drop", "todre-2", "uniform")
DIALECTS = ("portable", "onnxruntime", "static", "decomposed")

Exported = Callable[..., Bundle]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of six layers, 25 visual tokens, and heads that every dialect takes."""
    text = {"num_hidden_layers": LAYERS, "num_key_value_heads": 2, "head_dim": 16}
    return make_checkpoint(tmp_path_factory.mktemp("six") / "checkpoint", text=text)


@pytest.fixture(scope="module")
def eager(checkpoint: Path) -> EagerDecoder:
    return EagerDecoder(checkpoint)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("scheduled")
    made: dict[str, Bundle] = {}

    def get(schedule: str | None, dialect: str = "portable", keep: int = 20, **options: Any) -> Bundle:
        if dialect == "onnxruntime":
            options["numbering"] = "compact"
        name = f"{schedule}-{dialect}-{keep}-{sorted(options.items())}".replace("/", "_")
        if name not in made:
            made[name] = export(
                plan_of(checkpoint, keep, schedule=schedule, dialect=dialect, precision="fp32", **options),
                folder / str(len(made)),
            )
        return made[name]

    return get


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def cuts_of(bundle: Bundle) -> list[tuple[int, int]]:
    schedule = bundle.manifest.language_model.schedule
    assert schedule is not None
    return [(cut.before, cut.keep) for cut in schedule.cuts]


def expected(eager: EagerDecoder, bundle: Bundle, chat: Any, prompt: int, steps: int = STEPS) -> Any:
    """What the eager decoder does after the prompt's ids that a chat has in its cache."""
    info = bundle.manifest.language_model
    ids = np.array(chat._cached[:prompt])
    table = chat._pipeline._backend.to_host(chat._seen.tokens)[0]
    images, row = [], 0
    for image in chat._seen.images:
        images.append(np.flatnonzero(np.isin(ids, info.embedding_rows + row + np.arange(len(image.rows)))))
        row += len(image.rows)
    schedule = info.schedule
    return eager.greedy(
        eager.embed(ids, table),
        images,
        cuts_of(bundle),
        schedule.method,
        schedule.numbering == "compact",
        steps,
        [*np.concatenate([np.arange(a, b + 1) for a, b in bundle.manifest.prompt.forbidden_ids.ranges])],
    )


def agree(found: Any, wanted: list[int], margins: list[float]) -> None:
    """Ids are the same until one hangs on the last bits of two logits."""
    for step, (got, want, margin) in enumerate(zip(found, wanted, margins, strict=True)):
        if got != want:
            assert margin < 1e-3, f"step {step}: {got} instead of {want}"
            break


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_stays_and_what_follows(
    exported: Exported, eager: EagerDecoder, method: str, dialect: str
) -> None:
    """Of two images in one prompt as well, each of which is judged by itself."""
    bundle = exported(method, dialect)
    pipeline = Pipeline(bundle.folder)
    for images in ([picture(1)], [picture(2), picture(3)]):
        chat = pipeline.chat(images)
        answer = chat.ask(QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
        tokens, margins, kept = expected(eager, bundle, chat, answer.prompt_tokens)
        visual = np.flatnonzero(np.array(chat._cached) >= bundle.rows)
        for found, wanted, (_, keep) in zip(
            chat._session.kept(chat._slot), kept, cuts_of(bundle), strict=True
        ):
            assert visual[found].tolist() == sorted(wanted.tolist())
            assert len(found) == keep * len(images)
        agree(answer.token_ids, tokens, margins)
        lengths = chat._session.lengths(chat._slot)
        assert lengths == tuple(
            lengths[0] - len(images) * (20 - keep) for keep in (20, *(k for _, k in cuts_of(bundle)))
        )
