"""Options that ``evaluate`` and ``sweep`` have in common, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from divprune_edge.runtime.options import BudgetOption, RadiusOption, ThreadsOption


@dataclass(frozen=True)
class RunOptions:
    """What is asked, with what, on what."""

    data: Annotated[
        str,
        typer.Option(
            metavar="demo|FOLDER|lmms:TASK",
            help="The built-in held-out questions ('demo-development': others, to choose settings by), a folder of "
            "images with a JSONL of questions and answers, or a "
            "task of lmms-eval (by name, or a YAML file).",
        ),
    ] = "demo"
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            "--limit",
            help="Ask about the first so many images (documents of a task) only.",
            show_default="all",
        ),
    ] = None
    selectors: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Selectors, with commas between them.", show_default="all of the bundle"
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="K,K,…", help="Budgets of visual tokens.", show_default="all of the bundle"
        ),
    ] = None
    budget: BudgetOption = None
    radius: RadiusOption = None
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; an interrupted run goes on from there.",
            show_default="evaluations/BUNDLE-DATA",
        ),
    ] = None
    backend: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu"
    threads: ThreadsOption = None
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer, in tokens.", show_default="32, or what the task says"),
    ] = None

    def names(self) -> list[str] | None:
        """Return the selectors as a list."""
        return split_names(self.selectors)

    def budgets(self) -> list[int] | None:
        """Return the budgets as numbers.

        Raises:
            UserError: not whole numbers.
        """
        if self.keep is None:
            return None
        try:
            return [int(part) for part in self.keep.split(",") if part.strip()]
        except ValueError:
            from divprune_edge.errors import UserError

            raise UserError(
                f"--keep is '{self.keep}', expected whole numbers with commas between them.",
                code="option-invalid",
            ) from None

    def enough(self) -> float | None:
        """Return the coverage radius of ``--budget auto``, None without it.

        Raises:
            UserError: one of the two options without the other.
        """
        from divprune_edge.errors import UserError
        from divprune_edge.runtime.budgets import check_auto

        check_auto(self.budget, self.radius)
        if self.budget is not None and self.radius is None:
            raise UserError(
                "--budget auto needs --radius: learn one with --learn-radius.",
                code="budget-auto-needs-radius",
            )
        return self.radius

    def folder(self, bundle: str, data: str) -> Path:
        """Return where results go: ``--output``, or a folder named after what is evaluated."""
        return self.output or Path("evaluations") / f"{bundle}-{data}"


def split_names(given: str | None) -> list[str] | None:
    """Return ``a,b`` as a list."""
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the command's parameter ``options`` into the options of :class:`RunOptions`, as typer reads them."""
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if f.default is MISSING else f.default,
            annotation=hints[f.name],
        )
        for f in fields(RunOptions)
    ]
    own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        options = RunOptions(**{p.name: given.pop(p.name) for p in shared})
        command(options=options, **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "options"] + shared
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
