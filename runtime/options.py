"""Options that several commands of ``python -m runtime`` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder written by 'python -m export'.")
]
LongestOption = Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")]
GoOnOption = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the answer.")]
SelectorOption = Annotated[
    str | None, typer.Option(help="Selector of the bundle, by id or name; 'none' keeps every visual token.")
]
KeepOption = Annotated[int | None, typer.Option(help="Number of visual tokens to keep.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the most likely token.")]
TopPOption = Annotated[float, typer.Option(help="Sample from the most likely tokens of this total.")]
TopKOption = Annotated[int, typer.Option(help="Sample from so many most likely tokens; 0 for all.")]
PenaltyOption = Annotated[
    float, typer.Option(help="Above 1 makes tokens that were there before less likely.")
]
StopOption = Annotated[
    list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")
]
