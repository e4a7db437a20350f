"""An evaluation from end to end: methods, questions, the run, its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from divprune_edge.files import write_whole
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.evaluation.dataset import Dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.pairs import PAIRS, compare_pairs, pairs_csv
from divprune_edge.runtime.lab.evaluation.results import Row, journal_in, summarise, writing
from divprune_edge.runtime.lab.evaluation.runner import Runner

OnImage = Callable[[int, int], None]


def evaluate(
    bundle: Bundle,
    data: Dataset,
    methods: Sequence[EvaluatedMethod],
    folder: Path,
    *,
    backend: str = "cpu",
    threads: int | None = None,
    max_tokens: int = 32,
    on_image: OnImage = lambda done, total: None,
) -> list[Row]:
    """Ask what was not asked yet, write how the methods differ, and return one row per method.

    Args:
        bundle: the opened bundle.
        data: the questions.
        methods: the selectors and baselines.
        folder: where the records are kept; a run that was interrupted goes on from there.
        backend: ``cpu`` or ``cuda``.
        threads: CPU threads; None takes all cores.
        max_tokens: longest answer.
        on_image: told how many images are done, of how many.

    Raises:
        UserError: the folder holds another evaluation, or an image cannot be used.
    """
    runner = Runner(bundle, methods, backend, threads, max_tokens)
    with journal_in(folder, run_facts(bundle, data.name, runner.backend, threads, max_tokens)) as journal:
        done = journal.done(data)
        warm = False
        for number, image in enumerate(data.images, start=1):
            missing = [method for method in methods if (image.name, method.id) not in done]
            if missing and not warm:
                runner.ask(image, methods)  # the first run of a session is slower than the rest
                warm = True
            if missing:
                for record in runner.ask(image, missing):
                    journal.add(record)
            on_image(number, len(data.images))
        pairs = compare_pairs(journal.records, methods, data)
        with writing(folder / PAIRS):
            write_whole(folder / PAIRS, pairs_csv(pairs))
        return summarise(journal.records, methods, data)


def run_facts(
    bundle: Bundle, data: str, backend: str, threads: int | None, max_tokens: int | None
) -> dict[str, Any]:
    """Return what makes two evaluations the same: only then do their records belong together.

    Selectors may be added to a bundle between runs; its encoder, tokenizer, chat template and language model may not
    change.
    """
    manifest = bundle.manifest
    selectors = {name for one in manifest.selectors for name in (one.file, one.stripped, *one.data)}
    sums = sorted(info.sha256 for name, info in manifest.files.items() if name not in selectors)
    return {
        "bundle": hashlib.sha256("".join(sums).encode()).hexdigest()[:16],
        "data": data,
        "backend": backend,
        "threads": threads,
        "max_tokens": max_tokens,
    }
