"""``trtexec.json`` beside the measurements: what they are of, so that a folder can be read without the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.manifest import Precision, Strict
from divprune_edge.strict_json import is_file, read_json

RECORD = "trtexec.json"


class StageInfo(Strict):
    """One measured stage: its engine, and what it costs, where the bundle says."""

    name: str
    engine: str
    flops: int | None = None
    bytes: int | None = None
    precision: Precision | None = None


class RunInfo(Strict):
    """The bundle, the version of TensorRT, the target, and the stages in order."""

    schema_version: Literal[1] = 1
    bundle: str
    tensorrt: str
    target: str | None
    precision: str
    visual_tokens: int
    prompt_tokens: int | None
    stages: tuple[StageInfo, ...]
    notes: tuple[str, ...] = ()


def write_run(info: RunInfo, folder: Path) -> None:
    """Write the record.

    Raises:
        UserError: the folder cannot be written.
    """
    text = json.dumps(info.model_dump(mode="json"), indent=1) + "\n"
    try:
        write_whole(folder / RECORD, text)
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written ({error.strerror or error}): choose another --output.",
            code="output-unwritable",
        ) from None


def read_run(folder: Path) -> RunInfo:
    """Read the record.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD
    if not is_file(path):
        raise UserError(
            f"There is no '{path}': --read takes the folder that 'python -m runtime trtexec BUNDLE --output DIR' "
            "wrote.",
            code="measurements-missing",
        )
    again = "run the commands again with --output"
    data = read_json(path, code="measurements-invalid", advice=again)
    try:
        return RunInfo.model_validate(data)
    except ValidationError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.errors()[0]['msg']}): {again}.", code="measurements-invalid"
        ) from None
