"""From trtexec's published source to the table of its options.

``python -m divprune_edge.runtime.lab.trtexec.generate_options CHECKOUT TAG… > options.json``

CHECKOUT is a clone of github.com/NVIDIA/TensorRT, the tags are releases such as ``v10.3.0``. Only the names of the
options that the argument parser asks for are taken over.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NoReturn

from divprune_edge.console import USAGE, fail
from divprune_edge.errors import UserError

REPOSITORY = "https://github.com/NVIDIA/TensorRT"
SOURCE = "samples/common/sampleOptions.cpp"
_END = "TaskInferenceOptions::parse"
"""From here on the file is about other programs and about help texts."""
_ASKED = re.compile(r'\bget\w*\((?:[^;"()]|\([^()]*\))*"(--\w+)"')


def read_options(text: str) -> list[str]:
    """Return the names of the options that trtexec's argument parser asks for, sorted, with their dashes.

    Raises:
        UserError: the text is not that source.
    """
    whole, end, _ = text.partition(_END)
    found = sorted({*_ASKED.findall(whole), "--help"})
    if not end or "--onnx" not in found:
        raise UserError(
            f"The text is not trtexec's source: give {SOURCE} of a release of {REPOSITORY}.",
            code="source-not-recognized",
        )
    return found


def make_table(checkout: Path, tags: list[str]) -> dict[str, Any]:
    """Return the table of several releases, by major and minor version.

    Raises:
        UserError: no such release in the checkout, or its source has another form.
    """
    versions = {}
    for tag in tags:
        name = re.match(r"v(\d+\.\d+)", tag)
        if name is None:
            raise UserError(
                f"'{tag}' is not a release, expected a tag such as v10.3.0.", code="revision-invalid"
            )
        versions[name.group(1)] = {
            "tag": tag,
            "revision": _git(checkout, "rev-parse", f"{tag}^{{commit}}").strip(),
            "options": read_options(_git(checkout, "show", f"{tag}:{SOURCE}")),
        }
    return {"source": f"{REPOSITORY}, {SOURCE}", "versions": versions}


def _git(checkout: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UserError(
            f"git cannot read '{checkout}' ({result.stderr.strip().splitlines()[0]}).", code="git-failed"
        )
    return result.stdout


def main() -> NoReturn:
    """Print the table."""
    import sys

    if len(sys.argv) < 3:
        fail("Two or more arguments are needed: a clone of TensorRT, and tags such as v10.3.0.", code=USAGE)
    try:
        print(json.dumps(make_table(Path(sys.argv[1]), sys.argv[2:]), indent=1))
    except UserError as error:
        fail(str(error), error.exit_code, code=error.code)
    raise SystemExit(0)


if __name__ == "__main__":
    main()
