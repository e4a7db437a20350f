"""``python -m runtime profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from divprune_edge.runtime.options import BundleArgument, KeepOption, SelectorOption, ThreadsOption

if TYPE_CHECKING:
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.profiling.measure import Measured, Variant, Workload
    from divprune_edge.runtime.lab.profiling.roofline import Machine

LENGTHS = "1,16,64,256"
_QUESTION = "What is in the picture?"


def profile_command(
    bundle: BundleArgument,
    *,
    image: Annotated[
        Path | None, typer.Option(help="The image to ask about.", show_default="the demo's")
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask.")] = _QUESTION,
    selector: SelectorOption = None,
    keep: KeepOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SELECTOR|BUNDLE",
            help="What to measure in turn with it: a selector, 'none' for no pruning, or another bundle.",
            show_default="no pruning, where there is room",
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Measure nothing beside it.")] = False,
    backend: Annotated[str, typer.Option(help="As for 'ask'.")] = "cpu",
    threads: ThreadsOption = None,
    runs: Annotated[int, typer.Option(metavar="N", help="Measured rounds.")] = 10,
    warmup: Annotated[int, typer.Option(metavar="N", help="Rounds before them.")] = 2,
    answer_tokens: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Lengths of answers to report.", show_default=LENGTHS),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Device whose peak rates draw the rooflines.", show_default="the bundle's"
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with charts.")
    ] = None,
) -> None:
    """Measure where an answer's time goes, and what pruning saves of it."""
    from rich.progress import Progress

    from divprune_edge.errors import UserError
    from divprune_edge.files import check_place
    from divprune_edge.models.demo import IMAGE
    from divprune_edge.models.targets import find_target
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.profiling.measure import Workload, measure
    from divprune_edge.runtime.lab.profiling.page import profile_page, write_file
    from divprune_edge.runtime.lab.profiling.report import make_report
    from divprune_edge.runtime.lab.profiling.tables import print_report

    if runs < 1 or warmup < 1:
        name, value = ("--runs", runs) if runs < 1 else ("--warmup", warmup)
        raise UserError(f"{name} is {value}, expected at least 1.", code="count-out-of-range")
    if alone and against is not None:
        raise UserError(
            "--alone and --against were given together: leave one of the two out.", code="options-exclusive"
        )
    if target is not None:
        find_target(target)
    for file, option in ((json_file, "--json"), (html_file, "--html")):
        if file is not None:
            check_place(file, option)
    lengths = read_lengths(answer_tokens or LENGTHS)
    opened = Bundle.open(bundle)
    variants = _variants(opened, selector, keep, against, alone, backend, threads)
    shown = image or IMAGE
    variants, lengths, notes = _fit(
        variants, lengths, shown, question, chosen=against is not None, given=answer_tokens is not None
    )
    for other in variants[1:]:
        try:
            other.backend.load(other.selector)
        except UserError as error:
            if against is not None:
                raise
            notes = [*notes, f"It is not compared with {other.title}: {error}"]
            variants = variants[:1]
    schedule = opened.manifest.language_model.schedule
    if schedule is not None and len(variants) == 1 and not alone:
        notes.append(
            f"What the schedule '{schedule.method}' saves, a bundle exported without it shows: --against BUNDLE."
        )
    workload = Workload(shown, question, max(lengths))
    with Progress(transient=True) as bar:
        task = bar.add_task(f"{len(variants)} × {workload.tokens} tokens", total=warmup - 1 + runs)
        measured = measure(variants, workload, runs, warmup, lambda done: bar.update(task, completed=done))
    machine, same = _machine(target, opened.manifest.target, backend, threads)
    about = _about(measured[0], workload, runs, warmup, threads)
    report = make_report(measured, lengths, about, machine, same, notes)
    print_report(report)
    if json_file is not None:
        write_file(report.to_json(), json_file, "--json")
    if html_file is not None:
        write_file(profile_page(report), html_file, "--html")


def read_lengths(text: str) -> list[int]:
    """Return the lengths in a list with commas, ascending, each once.

    Raises:
        UserError: one of them is not a positive number.
    """
    from divprune_edge.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(
            f"--answer-tokens is '{text}', expected positive numbers with commas, such as {LENGTHS}.",
            code="option-invalid",
        )
    return sorted({int(part) for part in parts})


def _variants(
    bundle: Bundle,
    selector: str | None,
    keep: int | None,
    against: str | None,
    alone: bool,
    backend: str,
    threads: int | None,
) -> list[Variant]:
    """Return the variant of interest, and what it is compared with, if anything."""
    from dataclasses import replace

    from divprune_edge.errors import UserError
    from divprune_edge.manifest import UNPRUNED
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.lab.scheduled import title_of

    main = _open(bundle, selector, keep, backend, threads)
    keeps_all = main.selector is None or main.selector.keep >= main.selector.candidates
    if alone or (against is None and keeps_all):
        return [main]
    entries = bundle.manifest.selectors
    names = {UNPRUNED, *(entry.id for entry in entries), *(entry.name for entry in entries)}
    if against is None or against in names or not Path(against).is_dir():
        chosen = bundle.selector(against or UNPRUNED)
        if chosen == main.selector:
            raise UserError(
                f"--against {against} is what is measured already: name another selector, or --alone.",
                code="comparison-with-itself",
            )
        return [main, replace(main, title=title_of(chosen, bundle.manifest), selector=chosen)]
    other = _open(Bundle.open(against), None, None, backend, threads)
    if other.bundle.path == bundle.path:
        raise UserError(
            f"--against {against} is the bundle itself: name another one, or one of its selectors.",
            code="comparison-with-itself",
        )
    return [replace(v, title=f"{v.bundle.path.name}: {v.title}") for v in (main, other)]


def _open(
    bundle: Bundle, selector: str | None, keep: int | None, backend: str, threads: int | None
) -> Variant:
    from divprune_edge.runtime.backends import open_backend
    from divprune_edge.runtime.lab.profiling.measure import Variant
    from divprune_edge.runtime.lab.scheduled import title_of

    chosen = bundle.selector(selector, keep)
    engine = open_backend(bundle, backend, threads)
    engine.load(chosen)
    return Variant(title_of(chosen, bundle.manifest), bundle, chosen, engine, bundle.prompt_encoder())


def _fit(
    variants: list[Variant], lengths: list[int], image: Path, question: str, *, chosen: bool, given: bool
) -> tuple[list[Variant], list[int], list[str]]:
    """Leave out what there is no room for, with a note; what was asked for by name is refused instead."""
    from divprune_edge.errors import UserError
    from divprune_edge.manifest import larger_capacity

    notes = []
    for variant in variants[1:]:
        if not chosen and _room(variant, image, question) < 1:
            notes.append(
                f"There is no room for the prompt of '{variant.title}' in this bundle's cache, so it is not compared."
            )
            variants = variants[:1]
    rooms = [max(_room(variant, image, question), 0) for variant in variants]
    room = min(rooms)
    tightest = variants[rooms.index(room)]
    fitting = [length for length in lengths if length <= room]
    if len(fitting) < len(lengths):
        longest = next(length for length in reversed(lengths) if length > room)
        if given or not fitting:
            shorter = "give shorter ones with --answer-tokens, " if room else ""
            larger = larger_capacity(tightest.bundle.manifest.language_model)
            raise UserError(
                f"An answer of {longest} token{'s' * (longest != 1)} does not fit: beside the prompt of "
                f"'{tightest.title}' "
                f"there is room for {room}; {shorter}keep fewer visual tokens{larger}.",
                code="answer-too-long",
            )
        notes.append(f"Answers of more than {room} tokens do not fit beside the prompt and are left out.")
    return variants, fitting, notes


def _room(variant: Variant, image: Path, question: str) -> int:
    """Return how many tokens an answer may have; the last one is never fed back."""
    import numpy as np

    from divprune_edge.errors import UserError

    vision, language = variant.vision, variant.bundle.manifest.language_model
    (read,) = vision.read([image])
    count = vision.count(read, variant.selector)
    try:
        # Whichever are kept, the text behind the image begins at the same position.
        some = vision.placed(read, np.arange(count), np.arange(count))
        prompt = variant.prompt.place(variant.encode(question, read), [some])
    except UserError:
        if count < language.positions:
            raise
        return 0
    return min(language.positions - len(prompt), language.context - prompt.next_position)


def _machine(
    asked: str | None, stated: str | None, backend: str, threads: int | None
) -> tuple[Machine | None, bool]:
    """Return what the rooflines are drawn from, and whether the measurement ran on it, as far as one can tell."""
    from divprune_edge.models.targets import find_target
    from divprune_edge.runtime.lab.profiling.roofline import machine_of, measure_host

    name = asked or stated
    if name is not None:
        target = find_target(name)
        if (asked is not None or target.backend == backend) and (machine := machine_of(target)):
            return machine, target.backend == backend
    return (measure_host(threads), True) if backend == "cpu" else (None, False)


def _about(
    measured: Measured, workload: Workload, runs: int, warmup: int, threads: int | None
) -> dict[str, str]:
    import os
    import platform

    from divprune_edge.runtime.lab.scheduled import schedule_facts
    from divprune_edge.version import __version__

    variant = measured.variant
    manifest = variant.bundle.manifest
    return {
        "bundle": variant.bundle.path.name,
        "precision": manifest.precision,
        **schedule_facts(manifest),
        "dialect": manifest.language_model.dialect,
        "backend": variant.backend.name,
        "threads": str(threads or os.cpu_count() or 1),
        "processor": platform.processor() or platform.machine(),
        "image": workload.image.name + (f" ({measured.tiles} tiles)" if measured.tiles > 1 else ""),
        "rounds": f"{runs} after {warmup}",
        "divprune-edge": __version__,
    }
