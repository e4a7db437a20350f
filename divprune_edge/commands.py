"""Commands that are imported, and their options read, when they are asked for: a start pays for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class CommandGroup(TyperGroup):
    """A group that knows the names of its commands, and where each of them is; see :func:`application`."""

    places: ClassVar[Mapping[str, str]]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        names: Any = dict.fromkeys(self.places)
        self.commands = names

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read no option where a command comes first: ``--help`` is the only one, and typer loads pydantic for it."""
        self.add_help_option = not args or args[0].startswith("-")
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None where there is none of this name."""
        if cmd_name in self.places and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _command(cmd_name, resolve_name(self.places[cmd_name]))
        return super().get_command(ctx, cmd_name)


def application(
    places: Mapping[str, str], *, help: str, group: type[CommandGroup] = CommandGroup
) -> typer.Typer:
    """Return an application of commands.

    Args:
        places: command -> ``module:name`` of its function, or of an application that has commands of its own.
        help: what the application is for. Help texts of its own show all commands, and import them.
        group: a class with other manners.
    """
    cls = type(group.__name__, (group,), {"places": places})
    # typer takes what has no command yet for a group if it has a callback.
    return typer.Typer(cls=cls, callback=lambda: None, help=help, no_args_is_help=True, add_completion=False)


def _command(name: str, found: Any) -> Any:
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command()(function)
    command = typer.main.get_command(found)
    command.name = name
    return command
