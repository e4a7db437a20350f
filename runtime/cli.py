"""``python -m runtime``: ask, batch, info, build, serve, and the commands of the lab where that is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from divprune_edge.commands import application
from divprune_edge.runtime.options import (
    BudgetOption,
    BundleArgument,
    DefaultsOption,
    FpsOption,
    FramesOption,
    GoOnOption,
    KeepOption,
    LongestOption,
    PenaltyOption,
    RadiusOption,
    RawOption,
    SelectorOption,
    StopIdOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WarmUpOption,
    decoding_options,
)

if TYPE_CHECKING:
    from divprune_edge.processing.sources import Video
    from divprune_edge.runtime.answer import Answer
    from divprune_edge.runtime.pipeline import Pipeline

_RUNTIME = "divprune_edge.runtime"
LAB_COMMANDS = {
    "compare-selectors": f"{_RUNTIME}.lab.cli:compare_selectors",
    "evaluate": f"{_RUNTIME}.lab.evaluation.cli:evaluate_command",
    "sweep": f"{_RUNTIME}.lab.evaluation.cli:sweep_command",
    "profile": f"{_RUNTIME}.lab.profiling.cli:profile_command",
    "trtexec": f"{_RUNTIME}.lab.trtexec.cli:trtexec_command",
}
"""What a board's wheel leaves out."""


def _has_lab() -> bool:
    return find_spec(f"{_RUNTIME}.lab") is not None


app = application(
    {
        "ask": f"{__name__}:ask",
        "info": f"{__name__}:info",
        "batch": f"{_RUNTIME}.batch_cli:batch_command",
        "build": f"{_RUNTIME}.engines.cli:build_command",
        "serve": f"{_RUNTIME}.serve.cli:serve_command",
        "triton": f"{_RUNTIME}.triton.cli:triton_command",
        **(LAB_COMMANDS if _has_lab() else dict.fromkeys(LAB_COMMANDS, f"{__name__}:not_here")),
    },
    help="Ask an exported bundle about images, serve it, measure it.",
)

HashOption = Annotated[
    str, typer.Option(help="'auto' hashes new or touched files, 'always' hashes all of them.", metavar="WHEN")
]


def ask(
    bundle: BundleArgument,
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="What to ask; several with --chat."),
    ] = None,
    *,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="The image; several if given several times. The question is about none without it.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A clip, or a folder of its frames; several if given several times.",
            show_default=False,
        ),
    ] = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Several questions, from arguments or standard input; a line '/image PATH' or '/video PATH' adds one "
            "to the next.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer.")] = False,
    max_tokens: LongestOption = None,
    ignore_eos: GoOnOption = False,
    selector: SelectorOption = None,
    keep: KeepOption = None,
    budget: BudgetOption = None,
    radius: RadiusOption = None,
    backend: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    threads: ThreadsOption = None,
    warm_up: WarmUpOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    stop: StopOption = None,
    stop_id: StopIdOption = None,
    checkpoint_defaults: DefaultsOption = False,
    system: SystemOption = None,
    raw_prompt: RawOption = False,
    show_kept: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the kept patches over the image into this file."),
    ] = None,
    verify_hashes: HashOption = "auto",
) -> None:
    """Answer a question about an image or a clip, about several, or about none.

    The answer is streamed to standard output, one line about what it took goes to standard error.
    """
    from divprune_edge.errors import UserError
    from divprune_edge.files import check_place
    from divprune_edge.processing.sources import Video, clips_of
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.chat_lines import converse, is_typed, typed_lines
    from divprune_edge.runtime.generate import Decoding
    from divprune_edge.runtime.pipeline import Pipeline
    from divprune_edge.runtime.progress import on_terminal

    given, images = questions or [], image or []
    clips = [Video(path, fps, frames) for path in video or ()]
    if not clips and not chat:
        clips_of(None, fps, frames)
    if not chat and len(given) != 1:
        raise UserError(
            f"{len(given)} questions were given, expected one: put it in quotes"
            + (", or add --chat to ask several." if given else "."),
            code="question-count",
        )
    decoding = decoding_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_ids=tuple(stop_id or ()),
        ignore_eos=ignore_eos,
    )
    if show_kept is not None and show_kept.suffix.lower() != ".png":
        raise UserError(
            f"--show-kept is '{show_kept}', expected a file name that ends in .png.", code="option-invalid"
        )
    if show_kept is not None and not _has_lab():
        raise UserError(_lab_missing("--show-kept"), code="lab-not-installed")
    if show_kept is not None and (len(images) != 1 or clips):
        also = f" and {len(clips)} clips" if clips else ""
        raise UserError(
            f"--show-kept draws over one image, but {len(images)}{also} were given: ask about one alone.",
            code="show-kept-images",
        )
    if show_kept is not None:
        check_place(show_kept, "--show-kept")
    Decoding(**decoding)  # a wrong value is told before anything is loaded
    opened = Bundle.open(bundle, verify_hashes)  # type: ignore[arg-type]
    decoding |= {"raw_prompt": raw_prompt, "checkpoint_defaults": checkpoint_defaults}
    with on_terminal() as tell:
        pipeline = Pipeline(
            opened, selector, keep, backend, threads, tell, warm_up=warm_up, budget=budget, radius=radius
        )
        conversation = pipeline.chat([*images, *clips], system=system)

        def ask_one(question: str, more: Sequence[Path | Video] = ()) -> None:
            answer = conversation.ask(
                question, image=more, stream=None if as_json else _print_piece, **decoding
            )
            _print_json(answer) if as_json else _print_summary(answer)

        if chat:
            forgiving = not given and is_typed()
            converse(given or typed_lines(), ask_one, fps, frames, forgiving=forgiving)
        else:
            ask_one(given[0])
    if show_kept is not None:
        _draw(pipeline, images[0], show_kept)


def info(
    bundle: BundleArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
    verify_hashes: HashOption = "auto",
) -> None:
    """Show a bundle's graphs, selectors, sizes, source and verification."""
    from divprune_edge.runtime.bundle import Bundle
    from divprune_edge.runtime.info import facts_of, print_tables

    opened = Bundle.open(bundle, verify_hashes)  # type: ignore[arg-type]
    if as_json:
        import json

        print(json.dumps(facts_of(opened), ensure_ascii=False))
    else:
        print_tables(opened)


def _lab_missing(what: str) -> str:
    return (
        f"'{what}' is for a workstation and is not in divprune-edge-runtime, which is what is installed here: install "
        "the whole of divprune-edge there, by pip install -e '.[cpu]' in its clone."
    )


not_here = typer.Typer(add_completion=False)


@not_here.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _not_here(context: typer.Context) -> None:
    """For a workstation: not installed here."""
    from divprune_edge.errors import UserError

    raise UserError(_lab_missing(str(context.info_name)), code="lab-not-installed")


def main() -> NoReturn:
    """Entry point of ``python -m runtime``."""
    from divprune_edge.console import run

    run(app, program="python -m runtime")


def _draw(pipeline: Pipeline, image: Path, path: Path) -> None:
    import io

    from divprune_edge.errors import UserError
    from divprune_edge.files import write_whole
    from divprune_edge.runtime.lab.drawing import draw_selection
    from divprune_edge.runtime.lab.inspection import inspect_selection

    drawing = draw_selection(inspect_selection(pipeline, image))
    try:
        drawing.save(encoded := io.BytesIO(), "PNG")
        write_whole(path, encoded.getvalue())
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror or error}): choose another --show-kept.",
            code="output-unwritable",
        ) from None
    print(f"kept patches drawn into {path}", file=sys.stderr)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _print_json(answer: Answer) -> None:
    print(answer.to_json(), flush=True)


def _print_summary(answer: Answer) -> None:
    print(flush=True)
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in answer.timings_ms.items())
    cuts = "".join(f", {len(kept)} visual from layer {layer} on" for layer, kept in answer.kept_from.items())
    print(
        f"[{answer.visual_tokens} visual of {answer.prompt_tokens} prompt tokens{cuts}, {len(answer.token_ids)} "
        f"generated; ms: {stages}; {answer.backend}]",
        file=sys.stderr,
    )
