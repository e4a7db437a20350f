"""``python -m runtime evaluate`` and ``python -m runtime sweep``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from divprune_edge.runtime.lab.evaluation.options import RunOptions, with_run_options
from divprune_edge.runtime.options import BundleArgument

if TYPE_CHECKING:
    from rich.progress import Progress

    from divprune_edge.manifest import ScheduleInfo
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.evaluation.dataset import Dataset
    from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
    from divprune_edge.runtime.lab.evaluation.results import Row
    from divprune_edge.runtime.lab.evaluation.sweep import Entry
    from divprune_edge.runtime.lab.evaluation.tables import AnyRow

SHORT = 32
"""Longest answer, in tokens, where nothing else is said."""


@with_run_options
def evaluate_command(
    bundle: BundleArgument,
    options: RunOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    learn_radius: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Find the --radius for --budget auto: the largest that leaves every type of question this share of "
            "what the unpruned model gets right.",
        ),
    ] = None,
) -> None:
    """Ask a set of questions with every selector of a bundle, at every budget, and with the baselines.

    The unpruned model, 'random' and 'uniform' are always among them. Writes evaluation.md, .csv
    and .json, and pairs.csv with the differences between methods on the same questions.
    """
    from divprune_edge.errors import UserError
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.evaluation.dataset import LMMS, load_dataset
    from divprune_edge.runtime.lab.evaluation.methods import choose_methods
    from divprune_edge.runtime.lab.scheduled import title_of

    opened = Bundle.open(bundle)
    methods = choose_methods(opened, options.names(), options.budgets(), options.enough())
    if options.data.startswith(LMMS):
        if learn_radius is not None:
            raise UserError(
                f"--learn-radius goes by types of question, which '{options.data}' has none of: give a folder of "
                "images with a JSONL of questions.",
                code="dataset-is-a-task",
            )
        evaluate_lmms(opened, methods, options, as_json=as_json)
        return
    questions = load_dataset(options.data, options.images)
    folder = options.folder(opened.path.name, questions.name)
    rows = run_with_progress(opened, questions, methods, folder, options)
    schedule = opened.manifest.language_model.schedule
    about = facts(opened, questions, options.backend)
    report(rows, folder, about, "evaluation", schedule=schedule, as_json=as_json)
    if learn_radius is not None:
        from divprune_edge.runtime.lab.evaluation.radius import learn_from

        scheduled = opened.manifest.language_model.schedule is not None
        unpruned = {"unpruned": title_of(None, opened.manifest)} if scheduled else {}
        print("\n".join(learn_from(folder, methods, questions, learn_radius, **unpruned)), file=sys.stderr)


@with_run_options
def sweep_command(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE…", help="Bundles of one model; several to compare precisions or schedules."
        ),
    ],
    options: RunOptions,
    target_ttft: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Name the largest budget within this time to first token, as in 150ms."
        ),
    ] = None,
) -> None:
    """Measure selectors × budgets, and draw accuracy against visual tokens and against latency.

    Writes sweep.md, .csv, .json and .html, the two charts as SVG, and pairs.csv with the differences between methods on
    the same questions.
    """
    from dataclasses import replace

    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.evaluation.dataset import load_dataset
    from divprune_edge.runtime.lab.evaluation.methods import choose_methods
    from divprune_edge.runtime.lab.evaluation.sweep import Entry, parse_milliseconds, verdict
    from divprune_edge.runtime.lab.scheduled import (
        named_variant,
        schedule_line,
        title_of,
        variant_of,
    )

    target = None if target_ttft is None else parse_milliseconds(target_ttft)
    opened = [Bundle.open(path) for path in bundles]
    _require_one_model(opened)
    chosen = [
        choose_methods(bundle, options.names(), options.budgets(), options.enough()) for bundle in opened
    ]
    questions = load_dataset(options.data, options.images)
    folder = options.folder(opened[0].path.name, questions.name)
    entries: list[Entry] = []
    for bundle, methods in zip(opened, chosen, strict=True):
        place = folder if len(opened) == 1 else folder / bundle.path.name
        rows = run_with_progress(bundle, questions, methods, place, options)
        variant = variant_of(bundle.manifest)
        named = named_variant(bundle.path.name, bundle.manifest) if len(opened) > 1 else None
        unpruned = title_of(None, bundle.manifest)
        entries += [Entry(variant, replace(row, variant=named), unpruned) for row in rows]
    about = facts(opened[0], questions, options.backend)
    about["precision"] = ", ".join(dict.fromkeys(bundle.manifest.precision for bundle in opened))
    lines = dict.fromkeys(schedule_line(bundle.manifest) for bundle in opened)
    about |= {"schedule": "; ".join(line or "none" for line in lines)} if any(lines) else {}
    sentence = None if target is None else verdict(entries, target)
    write_sweep(entries, folder, about, sentence)
    schedule = opened[0].manifest.language_model.schedule if len(opened) == 1 else None
    report([entry.row for entry in entries], folder, about, "sweep", schedule=schedule, as_json=False)
    print(f"Charts: {folder / 'sweep.html'}" + (f"\n{sentence}" if sentence else ""))


def _require_one_model(bundles: Sequence[Bundle]) -> None:
    from divprune_edge.errors import UserError

    first = bundles[0]
    for other in bundles[1:]:
        if other.manifest.source.config_sha256 != first.manifest.source.config_sha256:
            raise UserError(
                f"'{other.path}' is of another model than '{first.path}' ({other.manifest.source.model}, "
                f"{first.manifest.source.model}): sweep one at a time, or give several bundles of one model.",
                code="models-mixed",
            )


def write_sweep(entries: list[Entry], folder: Path, about: dict[str, object], sentence: str | None) -> None:
    """Write the page and its charts."""
    from divprune_edge.files import write_whole
    from divprune_edge.runtime.lab.evaluation.page import latency_chart, sweep_page, tokens_chart
    from divprune_edge.runtime.lab.evaluation.results import writing

    with writing(folder):
        write_whole(folder / "sweep.html", sweep_page(entries, about, sentence))
        write_whole(folder / "sweep-tokens.svg", tokens_chart(entries) + "\n")
        write_whole(folder / "sweep-latency.svg", latency_chart(entries) + "\n")


def evaluate_lmms(
    bundle: Bundle, methods: list[EvaluatedMethod], options: RunOptions, *, as_json: bool
) -> None:
    """Run a task of lmms-eval and write its tables."""
    from divprune_edge.runtime.lab.evaluation.lmms import evaluate_task, find_task

    task = find_task(options.data)
    folder = options.folder(bundle.path.name, task.name)
    with _progress(f"{task.name}, {len(methods)} methods; results in {folder}.") as bar:
        line = bar.add_task("questions", total=None)
        rows, ignored = evaluate_task(
            bundle,
            task,
            methods,
            folder,
            backend=options.backend,
            threads=options.threads,
            max_tokens=options.max_tokens,
            limit=options.images,
            on_asked=lambda done, total: bar.update(line, completed=done, total=total),
        )
    about = _facts(bundle, options.data, options.backend) | {
        "questions": max(row.questions for row in rows),
        "ignored_settings": ignored,
    }
    schedule = bundle.manifest.language_model.schedule
    report(rows, folder, about, "evaluation", schedule=schedule, as_json=as_json)
    if ignored:
        print(f"Settings of the task without a meaning here: {', '.join(ignored)}.", file=sys.stderr)


def run_with_progress(
    bundle: Bundle, data: Dataset, methods: list[EvaluatedMethod], folder: Path, options: RunOptions
) -> list[Row]:
    """Evaluate with a bar on standard error."""
    from divprune_edge.manifest import UNPRUNED
    from divprune_edge.runtime.lab.evaluation.evaluate import evaluate

    said = (
        f"images {len(data.images)}, questions {data.questions}, methods {len(methods)}; results in {folder}."
    )
    if all(method.name != UNPRUNED for method in methods):
        tokens, room = bundle.manifest.visual_tokens(None), bundle.manifest.language_model.positions
        said += (
            f" '{UNPRUNED}' is not among them: its {tokens} visual tokens need more than the cache's {room} "
            "rows; export with a larger --capacity."
        )
    with _progress(said) as bar:
        line = bar.add_task("images", total=len(data.images))
        return evaluate(
            bundle,
            data,
            methods,
            folder,
            backend=options.backend,
            threads=options.threads,
            max_tokens=options.max_tokens or SHORT,
            on_image=lambda done, total: bar.update(line, completed=done),
        )


def _progress(said: str) -> Progress:
    """Return a bar on standard error, after a line that says what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(markup=False, stderr=True, soft_wrap=True, highlight=False)
    console.print(said)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def facts(bundle: Bundle, data: Dataset, backend: str) -> dict[str, object]:
    """Return what a result was measured on."""
    return _facts(bundle, data.name, backend) | {
        "images": len(data.images),
        "questions": data.questions,
    }


def _facts(bundle: Bundle, data: str, backend: str) -> dict[str, object]:
    from divprune_edge.runtime.lab.scheduled import schedule_facts

    manifest = bundle.manifest
    return {
        "model": manifest.source.model,
        "precision": manifest.precision,
        "data": data,
        "backend": backend,
        "visual_tokens": manifest.visual_tokens(None),
        **schedule_facts(manifest),
    }


def report(
    rows: Sequence[AnyRow],
    folder: Path,
    about: dict[str, object],
    name: str,
    *,
    schedule: ScheduleInfo | None = None,
    as_json: bool,
) -> None:
    """Write the tables beside the records and print one of them; ``schedule`` is the one of all rows."""
    from rich.console import Console
    from rich.table import Table

    from divprune_edge.files import write_whole
    from divprune_edge.runtime.lab.evaluation import tables
    from divprune_edge.runtime.lab.evaluation.results import writing

    text = tables.to_json(rows, about)
    for ending, content in (("json", text), ("csv", tables.to_csv(rows)), ("md", tables.markdown(rows))):
        with writing(folder / f"{name}.{ending}"):
            write_whole(folder / f"{name}.{ending}", content)
    if as_json:
        print(text, end="")
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    lines = tables.cells(rows, by_type=False)
    table = Table()
    for i, head in enumerate(tables.heads(rows, by_type=False)):
        width = max(len(head), *(len(line[i]) for line in lines))  # a table that is cut short says nothing
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True, min_width=width)
    for line in lines:
        table.add_row(*line)
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    console.width = max(needed, console.width)
    console.print(table)
    console.print(tables.footnote(rows))
    if "schedule" in about:
        console.print(f"Inside the language model visual tokens leave as well: {about['schedule']}.")
    for row in rows:
        if schedule is not None and (spared := schedule.spared(row.tokens)):
            console.print(f"With {row.method} {spared}.")
    console.print(f"Written: {folder / name}.md, .csv, .json")
