"""What an export prints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from divprune_edge.console import literal
from divprune_edge.export.writer import Progress as Count
from divprune_edge.hints import as_typed, quoted
from divprune_edge.manifest import DEFAULT_TEMPLATE, UNPRUNED, Check, Manifest, SelectorInfo

_console = Console(highlight=False, soft_wrap=True)
HUB_EXAMPLE = "llava-hf/llava-1.5-7b-hf"


def demo_notice(command: str) -> None:
    """Say that the bundled demo checkpoint is used, and what to type for a real one."""
    _console.print(
        "No checkpoint given: using the bundled demo checkpoint. For LLaVA-1.5-7B: "
        f"[bold]{literal(as_typed(command))}[/bold]"
    )


class ConsoleReporter:
    """Shows each stage with a bar while it runs and one line with its time when it is done."""

    @contextmanager
    def stage(self, title: str, weights: int = 0) -> Iterator[Count]:
        """See :class:`divprune_edge.export.bundle.Reporter`."""
        start = time.perf_counter()
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[at]}"),
        )
        shown = _console.is_terminal  # elsewhere a bar is noise; the line below is enough
        with Progress(*columns, console=_console, transient=True, disable=not shown) as bar:
            task = bar.add_task(title, total=weights or None, at="")
            yield lambda name: bar.update(task, advance=1, at=name)
        _console.print(f"  {title:<34} {time.perf_counter() - start:6.1f} s")

    def checks(self, checks: Sequence[Check]) -> None:
        """Print the verification table."""
        _console.print(checks_table(checks))


def checks_table(checks: Sequence[Check]) -> Table:
    """Return the verification table: one row per check, with its limit."""
    table = Table(title="Verification against PyTorch", title_justify="left")
    for column, side in (
        ("stage", "left"),
        ("check", "left"),
        ("value", "right"),
        ("limit", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for check in checks:
        limit = "" if check.limit is None else f"{check.limit:.4g}"
        verdict = "[green]ok[/green]" if check.passed else "[red]FAILED[/red]"
        table.add_row(
            literal(check.stage),
            literal(check.name),
            f"{check.value:.4g} {check.unit}".strip(),
            limit,
            verdict,
        )
    return table


def show_bundle(folder: Path, manifest: Manifest) -> None:
    """Print what was written and what to do with it."""
    size = sum(info.size for info in manifest.files.values())
    selector = manifest.selectors[0]
    enter = f"{selector.keep} of {selector.candidates} visual tokens by {selector.name}"
    if manifest.default_selector == UNPRUNED:
        enter = f"all {selector.candidates} visual tokens enter the language model"
    _console.print(
        f"Bundle: [bold]{literal(folder)}[/bold] ({size / 1e6:,.1f} MB, {manifest.precision}): {enter}; "
        f"{verified(manifest)}."
    )
    if manifest.language_model.schedule is not None:
        _console.print(f"Inside the language model by {manifest.language_model.schedule}.", markup=False)
    prompt = manifest.prompt
    if prompt.template_source == DEFAULT_TEMPLATE:
        _console.print(
            "The checkpoint has no chat template: prompts take the form that LLaVA-1.5 was trained with (USER: … "
            "ASSISTANT:). If this model was trained with another, put its chat_template.jinja into the checkpoint."
        )
    if prompt.generation is not None:
        _console.print(
            f"Its generation_config.json says: {prompt.generation} (used with --checkpoint-defaults).",
            markup=False,
        )
    ask = as_typed(f'python -m runtime ask {quoted(folder)} --image IMAGE "What is in the picture?"')
    _console.print(f"Ask it: [bold]{literal(ask)}[/bold]")


def show_package(archive: Path, size: int) -> None:
    """Print what was packed and what to do with it."""
    name = literal(archive.name)
    _console.print(f"Package: [bold]{literal(archive)}[/bold] ({size / 1e6:,.1f} MB).")
    _console.print(
        f"On the Jetson: [bold]tar -xf {name} && ./{name.removesuffix('.tar')}/install.sh[/bold] (docs/jetson.md)"
    )


def show_selector(folder: Path, manifest: Manifest, entry: SelectorInfo, checks: Sequence[Check]) -> None:
    """Print what was added to a bundle of this manifest."""
    added = f"[bold]{literal(entry.id)}[/bold] to {literal(folder)}"
    state = f"{len(checks)} checks against its reference passed" if checks else "not verified"
    _console.print(f"Added {added}: {entry.keep} of {entry.candidates} visual tokens; {state}.")
    schedule = manifest.language_model.schedule
    spared = None if schedule is None else schedule.spared(manifest.visual_tokens(entry))
    if spared is not None:
        _console.print(f"Note: {spared} ({schedule}).", markup=False)


def show_selectors(manifest: Manifest | None) -> None:
    """Print what a bundle has after all that was added; None where it had everything before."""
    if manifest is None:
        _console.print("Nothing was added: what was asked for is there already (--force makes it anew).")
        return
    names = [literal(selector.id) for selector in manifest.selectors]
    _console.print(f"The bundle now has {', '.join(names)}.")


def show_left_out(sentence: str | None) -> None:
    """Print what was not added, and why, if anything."""
    if sentence is not None:
        _console.print(as_typed(sentence))


def verified(manifest: Manifest) -> str:
    """Return the verification status in words."""
    result = manifest.verification
    if result.status == "not verified":
        return f"not verified ({result.reason})"
    layers = result.language_layers
    depth = (
        ""
        if layers is None or layers == manifest.language_model.layers
        else f", {layers} language layers run"
    )
    return f"verified against PyTorch ({len(result.checks)} checks{depth})"
