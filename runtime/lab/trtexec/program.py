"""The trtexec program: where it is, which version, and running it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import Manifest
from divprune_edge.models.targets import find_target
from divprune_edge.models.tensorrt import TENSORRT, parse_version
from divprune_edge.runtime.lab.trtexec.lines import Line

JETPACK = Path("/usr/src/tensorrt/bin/trtexec")


def find_program() -> Path:
    """Return trtexec from the search path, or where JetPack and NVIDIA's packages put it.

    Raises:
        UserError: it is in neither place.
    """
    found = shutil.which("trtexec")
    if found is not None:
        return Path(found)
    if JETPACK.is_file():
        return JETPACK
    raise UserError(
        f"trtexec was not found, neither on the search path nor at '{JETPACK}', where JetPack has it: run this on the "
        "device, or leave --run out to have the commands printed.",
        code="trtexec-missing",
    )


def program_version(program: Path) -> str:
    """Return the version that trtexec itself tells, such as ``10.3.0``.

    Raises:
        DivpruneError: it does not start, or tells none.
    """
    try:
        said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DivpruneError(
            f"'{program}' does not start ({error}): check TensorRT's installation.",
            code="trtexec-not-starting",
        ) from None
    found = re.search(r"\[TensorRT v(\d+)\]", said.stdout + said.stderr)
    if found is None:
        raise DivpruneError(
            f"'{program}' does not tell its version: check that its libraries are found (ldd '{program}').",
            code="trtexec-not-starting",
        )
    number = int(found.group(1))
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def choose_version(asked: str | None, manifest: Manifest, program: Path | None) -> str:
    """Return the version of TensorRT that the commands are for.

    Args:
        asked: what the command line names.
        manifest: whose target has a version, if nothing else is known.
        program: the trtexec that will run, if one will.

    Raises:
        UserError: no version is known, or the program is another one than was named.
    """
    if asked is not None:
        parse_version(asked)
    if program is not None:
        installed = program_version(program)
        if asked is not None and parse_version(asked) != parse_version(installed):
            raise UserError(
                f"--tensorrt is {asked}, but '{program}' is of TensorRT {installed}: leave the option out, or --run.",
                code="tensorrt-version-mismatch",
            )
        return installed
    if asked is not None:
        return asked
    try:
        import tensorrt

        return str(tensorrt.__version__)
    except ImportError:
        target = find_target(manifest.target) if manifest.target else None
        if target is not None and target.edition is not None and target.edition is not TENSORRT:
            raise UserError(
                f"trtexec is TensorRT's, but the bundle was made for {target.title}, which {target.edition.title} "
                "serves: name a TensorRT version with --tensorrt, such as 10.16, to measure the same graphs there.",
                code="trtexec-with-target",
            ) from None
        stated = target.tensorrt if target else None
    if stated is None:
        raise UserError(
            "TensorRT is not installed here and the bundle was not made for a target with it: name the version with "
            "--tensorrt, such as 10.3 (JetPack 6.2) or 10.16 (JetPack 7.2).",
            code="tensorrt-version-not-given",
        )
    return stated


def run_line(program: Path, line: Line, log: Path) -> None:
    """Run a command; what it says goes to ``log``.

    Raises:
        DivpruneError: it failed; the sentence has its last error.
    """
    try:
        with log.open("w", encoding="utf-8") as stream:
            result = subprocess.run(
                [program, *line.arguments], stdout=stream, stderr=subprocess.STDOUT, check=False
            )
    except OSError as error:
        raise DivpruneError(
            f"'{program}' cannot be run ({error.strerror or error}).", code="trtexec-not-starting"
        ) from None
    if result.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [text.split("[E]")[-1].strip() for text in said if "[E]" in text]
        reason = errors[-1].rstrip(".") if errors else f"exit code {result.returncode}"
        raise DivpruneError(
            f"trtexec could not {line.title} ({reason}); all that it said is in '{log}'.",
            code="trtexec-failed",
        )
