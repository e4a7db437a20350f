"""What the two generators of tables share: the command line, and a table as JSON with an operator a line.

They are for maintainers: the tables are part of the package, and a new release of TensorRT brings new ones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from divprune_edge.console import fail
from divprune_edge.errors import UserError
from divprune_edge.files import write_whole


def written(table: dict[str, Any]) -> str:
    """Return a table with its ``revision`` and ``operators`` as JSON, one operator a line.

    Raises:
        UserError: the revision is no commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", table["revision"]):
        raise UserError(
            f"--revision '{table['revision']}' is not a commit: give its 40 hexadecimal digits.",
            code="revision-invalid",
        )
    lines = []
    for key, value in table.items():
        if key == "operators":
            rows = (f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            lines.append('  "operators": {\n' + ",\n".join(rows) + "\n  }")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_table(
    arguments: Sequence[str] | None, make: Callable[[str, str, str, str], str], file: str, *, dated: bool
) -> None:
    """Read a published file, make its table and write it.

    Args:
        arguments: of the command line; None takes the process's.
        make: returns the table of a text, its source, its revision and its release of TensorRT.
        file: its path in onnx/onnx-tensorrt.
        dated: the file names its release itself, which ``--tensorrt`` then overrules.

    Raises:
        UserError: the file cannot be read, or what ``make`` raises.
    """
    parser = argparse.ArgumentParser(description=f"Turn {file} of onnx/onnx-tensorrt into a table.")
    parser.add_argument("published", type=Path, help=f"{file} of onnx/onnx-tensorrt")
    parser.add_argument("output", type=Path, help="the table, a JSON file")
    parser.add_argument("--source", default=f"onnx/onnx-tensorrt, {file}", help="where it is from")
    parser.add_argument("--revision", required=True, help="its commit")
    parser.add_argument("--tensorrt", required=not dated, help="the release of that commit")
    options = parser.parse_args(arguments)
    try:
        text = options.published.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{options.published}' cannot be read ({error}).", code="source-unreadable"
        ) from error
    table = make(text, options.source, options.revision, options.tensorrt)
    write_whole(options.output, table)


def run(main: Callable[[], None]) -> NoReturn:  # pragma: no cover - the shell's side of main
    """Run a generator as a command."""
    try:
        main()
    except UserError as error:
        fail(str(error), error.exit_code, code=error.code)
    raise SystemExit(0)
