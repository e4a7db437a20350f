"""What entries of a manifest are made of: names of types, paths, ids, hashes; and that nothing unknown is taken."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from divprune_edge.ids import MOST_IDS, Ids

MOST_FRAMES = 768
"""Of a clip."""
MOST_TILES, MOST_PIXELS = 100, 64_000_000
"""Bounds on what an image may be made to fill."""
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
"""How the weight matrices of a graph are stored. int8 and int4 compute everything else in float32, but int4 for
TensorRT (dialects ``static`` and ``decomposed``) in float16."""
Dialect = Literal["portable", "onnxruntime", "static", "decomposed"]
"""How attention and its cache are written; see ``export.dialects``."""
Numbering = Literal["compact", "original"]
"""Whether what is left of a prompt's images is numbered anew, without a gap, or keeps the positions that it had."""
Per = Literal["image", "tile", "frame"]
"""What a selector picks from: all rows of an image or clip at once, those of each tile, or of each frame."""


def _inside(path: str) -> str:
    """Refuse a path that is not a plain relative one: absolute, with ``..``, a drive, a backslash."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise ValueError(f"path '{path}' leaves the bundle folder")
    return path


def _ids(value: Any) -> Ids:
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list of ids and ranges [first, last]")
    return Ids(value)


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("is not a sha256 in hexadecimal")
    return value


ForbiddenIds = Annotated[
    Ids,
    PlainValidator(lambda value: value if isinstance(value, Ids) else _ids(value)),
    PlainSerializer(Ids.entries),
]
"""Ids that are ranges, in JSON and here."""
BundlePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]
Positive = Annotated[int, Field(gt=0, lt=1 << 62)]


class Strict(BaseModel):
    """What a file of ours holds: it cannot be changed, and a field that it does not know is refused."""

    # A manifest's schema holds those of all others: to build each by itself, too, would slow every start.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
