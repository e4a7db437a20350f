"""``python -m runtime evaluate`` and ``python -m runtime sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.evaluation.dataset import Dataset
    from divprune_edge.runtime.evaluation.methods import Method
    from divprune_edge.runtime.evaluation.results import Row
    from divprune_edge.runtime.evaluation.sweep import Entry

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder written by 'python -m export'.")
]
DataOption = Annotated[
    str,
    typer.Option(
        metavar="demo|FOLDER",
        help="The built-in held-out questions, or a folder of pictures with a JSONL of questions and answers.",
    ),
]
PicturesOption = Annotated[
    int | None, typer.Option(help="Ask about the first so many pictures only.", show_default="all")
]
SelectorsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Selectors, with commas between them.", show_default="all of the bundle"
    ),
]
BudgetsOption = Annotated[
    str | None,
    typer.Option(
        "--keep", metavar="K,K,…", help="Budgets of visual tokens.", show_default="all of the bundle"
    ),
]
BackendOption = Annotated[str, typer.Option(help="cpu or cuda.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")]
TokensOption = Annotated[int, typer.Option(help="Longest answer, in tokens.")]


def evaluate_command(
    bundle: BundleArgument,
    data: DataOption = "demo",
    pictures: PicturesOption = None,
    selectors: SelectorsOption = None,
    keep: BudgetsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; an interrupted run goes on from there.",
            show_default="evaluations/BUNDLE-DATA",
        ),
    ] = None,
    backend: BackendOption = "cpu",
    threads: ThreadsOption = None,
    max_tokens: TokensOption = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask a set of questions with every selector of a bundle, at every budget, and with the baselines.

    The unpruned model, 'random' and 'uniform' are always among them. Writes evaluation.md, .csv and .json.
    """
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.evaluation.dataset import load_dataset
    from divprune_edge.runtime.evaluation.methods import choose_methods

    opened = Bundle.open(bundle)
    methods = choose_methods(opened, split_names(selectors), split_budgets(keep))
    questions = load_dataset(data, pictures)
    folder = output or Path("evaluations") / f"{opened.path.name}-{questions.name}"
    rows = run_with_progress(
        opened, questions, methods, folder, backend=backend, threads=threads, max_tokens=max_tokens
    )
    report(rows, folder, facts(opened, questions, backend), "evaluation", as_json=as_json)


def sweep_command(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE…", help="Bundles of one model; several to compare precisions."),
    ],
    data: DataOption = "demo",
    pictures: PicturesOption = None,
    selectors: SelectorsOption = None,
    keep: BudgetsOption = None,
    target_ttft: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Name the largest budget within this time to first token, as in 150ms."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; an interrupted run goes on from there.",
            show_default="evaluations/BUNDLE-DATA",
        ),
    ] = None,
    backend: BackendOption = "cpu",
    threads: ThreadsOption = None,
    max_tokens: TokensOption = 32,
) -> None:
    """Measure selectors × budgets, and draw accuracy against visual tokens and against latency.

    Writes sweep.csv, sweep.json, sweep.html and the two charts as SVG.
    """
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.evaluation.dataset import load_dataset
    from divprune_edge.runtime.evaluation.methods import choose_methods
    from divprune_edge.runtime.evaluation.sweep import Entry, parse_milliseconds, verdict

    target = None if target_ttft is None else parse_milliseconds(target_ttft)
    opened = [Bundle.open(path) for path in bundles]
    chosen = [choose_methods(bundle, split_names(selectors), split_budgets(keep)) for bundle in opened]
    questions = load_dataset(data, pictures)
    folder = output or Path("evaluations") / f"{opened[0].path.name}-{questions.name}"
    entries: list[Entry] = []
    for bundle, methods in zip(opened, chosen, strict=True):
        place = folder if len(opened) == 1 else folder / bundle.path.name
        rows = run_with_progress(
            bundle, questions, methods, place, backend=backend, threads=threads, max_tokens=max_tokens
        )
        entries += [Entry(bundle.manifest.precision, row) for row in rows]
    about = facts(opened[0], questions, backend)
    about["precision"] = ", ".join(dict.fromkeys(bundle.manifest.precision for bundle in opened))
    sentence = None if target is None else verdict(entries, target)
    write_sweep(entries, folder, about, sentence)
    report([entry.row for entry in entries], folder, about, "sweep", as_json=False)
    print(f"Charts: {folder / 'sweep.html'}" + (f"\n{sentence}" if sentence else ""))


def write_sweep(entries: list[Entry], folder: Path, about: dict[str, object], sentence: str | None) -> None:
    """Write the page and its charts."""
    from divprune_edge.runtime.evaluation.page import latency_chart, sweep_page, tokens_chart

    (folder / "sweep.html").write_text(sweep_page(entries, about, sentence), encoding="utf-8")
    (folder / "sweep-tokens.svg").write_text(tokens_chart(entries) + "\n", encoding="utf-8")
    (folder / "sweep-latency.svg").write_text(latency_chart(entries) + "\n", encoding="utf-8")


def split_names(given: str | None) -> list[str] | None:
    """Return ``a,b`` as a list."""
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def split_budgets(given: str | None) -> list[int] | None:
    """Return ``144,58`` as a list of numbers.

    Raises:
        UserError: not whole numbers.
    """
    if given is None:
        return None
    try:
        return [int(part) for part in given.split(",") if part.strip()]
    except ValueError:
        from divprune_edge.errors import UserError

        raise UserError(f"--keep is '{given}', expected whole numbers with commas between them.") from None


def run_with_progress(
    bundle: Bundle,
    data: Dataset,
    methods: list[Method],
    folder: Path,
    *,
    backend: str,
    threads: int | None,
    max_tokens: int,
) -> list[Row]:
    """Evaluate with a bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from divprune_edge.runtime.evaluation.evaluate import evaluate

    console = Console(stderr=True)
    console.print(
        f"{len(data.pictures)} pictures, {data.questions} questions, {len(methods)} methods; results in {folder}."
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=len(data.pictures))
        return evaluate(
            bundle,
            data,
            methods,
            folder,
            backend=backend,
            threads=threads,
            max_tokens=max_tokens,
            on_picture=lambda done, total: bar.update(task, completed=done),
        )


def facts(bundle: Bundle, data: Dataset, backend: str) -> dict[str, object]:
    """Return what a result was measured on."""
    manifest = bundle.manifest
    return {
        "model": manifest.source.model,
        "precision": manifest.precision,
        "data": data.name,
        "pictures": len(data.pictures),
        "questions": data.questions,
        "backend": backend,
        "visual_tokens": manifest.vision_encoder.tokens,
    }


def report(rows: list[Row], folder: Path, about: dict[str, object], name: str, *, as_json: bool) -> None:
    """Write the tables beside the records and print one of them."""
    from rich.console import Console
    from rich.table import Table

    from divprune_edge.runtime.evaluation import tables

    text = tables.to_json(rows, about)
    for ending, content in (("json", text), ("csv", tables.to_csv(rows)), ("md", tables.markdown(rows))):
        (folder / f"{name}.{ending}").write_text(content, encoding="utf-8")
    if as_json:
        print(text, end="")
        return
    console = Console(highlight=False, soft_wrap=True)
    lines = tables.cells(rows, by_type=False)
    table = Table()
    for i, head in enumerate(tables.heads(rows, by_type=False)):
        width = max(len(head), *(len(line[i]) for line in lines))  # a table that is cut short says nothing
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True, min_width=width)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(tables.footnote(rows))
    console.print(f"Written: {folder / name}.md, .csv, .json")
