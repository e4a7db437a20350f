"""Options that several commands of ``python -m runtime`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder written by 'python -m export'.")
]
LongestOption = Annotated[
    int | None, typer.Option("--max-tokens", help="Longest answer, in tokens.", show_default="256")
]
GoOnOption = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the answer.")]
SelectorOption = Annotated[
    str | None, typer.Option(help="Selector of the bundle, by id or name; 'none' keeps every visual token.")
]
KeepOption = Annotated[int | None, typer.Option(help="Number of visual tokens to keep.")]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="auto",
        help="'auto': for each image the smallest of a selector's budgets that covers it, see --radius.",
    ),
]
RadiusOption = Annotated[
    float | None,
    typer.Option(
        "--radius", help="With --budget auto: the largest distance of a dropped visual token to a kept one."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")]
WarmUpOption = Annotated[
    bool,
    typer.Option(
        "--warm-up", help="Answer something unasked first, so that no question waits for a GPU's kernels."
    ),
]
TemperatureOption = Annotated[
    float | None, typer.Option(help="Above 0 samples; 0 takes the most likely token.", show_default="0")
]
TopPOption = Annotated[
    float | None,
    typer.Option(help="With --temperature: only the most likely tokens of this total.", show_default="1"),
]
TopKOption = Annotated[
    int | None,
    typer.Option(help="With --temperature: only so many most likely tokens; 0 for all.", show_default="0"),
]
PenaltyOption = Annotated[
    float | None,
    typer.Option(help="Above 1 makes tokens that were there before less likely.", show_default="1"),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="Text or special token that ends the answer; may be given several times."
    ),
]
StopIdOption = Annotated[
    list[int] | None,
    typer.Option(metavar="ID", help="Token id that ends the answer, too; may be given several times."),
]
DefaultsOption = Annotated[
    bool,
    typer.Option(
        "--checkpoint-defaults",
        help="Decode as the checkpoint's generation_config.json says, where no option says otherwise.",
    ),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="Instruction for the whole conversation.")
]
RawOption = Annotated[
    bool,
    typer.Option(
        "--raw-prompt",
        help="The question is the whole prompt: no chat template, special tokens act, a placeholder for each image.",
    ),
]


FpsOption = Annotated[
    float | None,
    typer.Option(
        help="Frames a second of a clip to look at; of a folder of frames, their rate.",
        show_default="the checkpoint's",
    ),
]
FramesOption = Annotated[
    int | None, typer.Option(help="Frames of a clip to look at, instead of --fps; spread evenly.")
]


def decoding_options(**options: Any) -> dict[str, Any]:
    """Return the decoding options that were given; what is left out, Decoding or the checkpoint settles."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and value != ()
    }
