"""``python -m runtime trtexec``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from divprune_edge.runtime.lab.trtexec.job import TrtexecJob

QUESTION = "What is in the picture?"


def trtexec_command(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Folder written by 'python -m export'.")
    ] = None,
    *,
    tensorrt: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="TensorRT's version, such as 10.3.", show_default="what is installed"
        ),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Selector of the bundle, or 'none'.", show_default="its default"),
    ] = None,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="vision, selector, language or all.")] = "all",
    max_prompt: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="As for 'build'.", show_default="the visual tokens and 192 more"),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The image to see.", show_default="the demo's")] = None,
    video: Annotated[
        Path | None, typer.Option(help="The clip to see instead; bundles exported with --frames.")
    ] = None,
    question: Annotated[str, typer.Option(help="The question of the prompt.")] = QUESTION,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where inputs, engines and measurements go.",
            show_default="BUNDLE/trtexec",
        ),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option("--library", metavar="DIR", help="Folder of the plugin.", show_default="the package"),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Run the commands and report what they measured.")
    ] = False,
    read: Annotated[
        Path | None,
        typer.Option("--read", metavar="DIR", help="Report what the commands measured in DIR earlier."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report with charts.")
    ] = None,
) -> None:
    """Print or run the trtexec commands for a bundle's engines, with realistic inputs, and read what they measure."""
    from divprune_edge.errors import UserError
    from divprune_edge.files import check_place
    from divprune_edge.models.demo import IMAGE
    from divprune_edge.processing.sources import Video
    from divprune_edge.runtime.lab.trtexec.job import make_job
    from divprune_edge.runtime.lab.trtexec.program import find_program

    if (bundle is None) == (read is None):
        raise UserError(
            "Give either a BUNDLE, to measure it, or --read DIR, to read what was measured.",
            code="options-exclusive",
        )
    if (json_file or html_file) and not run and read is None:
        raise UserError(
            "There is nothing to report yet: --json and --html belong to --run or --read.",
            code="report-without-run",
        )
    for file, option in ((json_file, "--json"), (html_file, "--html")):
        if file is not None:
            check_place(file, option)
    if read is not None:
        _report(read, json_file, html_file)
        return
    assert bundle is not None
    if image is not None and video is not None:
        raise UserError("Give either --image or --video: one of them is seen.", code="options-exclusive")
    media = image or IMAGE if video is None else Video(video)
    program = find_program() if run else None
    job = make_job(bundle, tensorrt, program, selector, stage, max_prompt, media, question, output, library)
    if program is None:
        _print(job)
        return
    _run(program, job)
    _report(job.files.folder, json_file, html_file)


def _print(job: TrtexecJob) -> None:
    for line in job.lines:
        print(f"# {line.title}")
        print(line.text())
    print(f"inputs for TensorRT {job.version} lie in {job.files.folder}", file=sys.stderr)
    for note in job.notes:
        print(note, file=sys.stderr)


def _run(program: Path, job: TrtexecJob) -> None:
    from divprune_edge.runtime.lab.trtexec.program import run_line

    for i, line in enumerate(job.lines, start=1):
        print(f"{i} of {len(job.lines)}: {line.title} ...", file=sys.stderr, flush=True)
        run_line(program, line, job.files.folder / f"{line.title.replace(' ', '-')}.log")


def _report(folder: Path, json_file: Path | None, html_file: Path | None) -> None:
    from divprune_edge.runtime.lab.profiling.page import write_file
    from divprune_edge.runtime.lab.profiling.tables import print_tables
    from divprune_edge.runtime.lab.trtexec.summary import read_report

    report = read_report(folder)
    sentences: Sequence[str] = report.sentences
    print_tables(report.about, report.tables(), sentences, report.notes)
    if json_file is not None:
        write_file(report.to_json(), json_file, "--json")
    if html_file is not None:
        write_file(report.to_html(), html_file, "--html")
