"""What a TensorRT version's ONNX parser lists: operators, element types, opsets.

Two published lists are at hand (10.1 and 10.15). A version is held against the newest list that is not newer than
itself, with the additions that the changelog names in between: 10.3 against 10.1's list, 10.16 and 11.x against
10.15's. The files are made by :mod:`divprune_edge.export.check.generate_tables`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.check.attributes import Checkers, checkers_for
from divprune_edge.models.tensorrt import parse_version

LISTS = ("10.1", "10.15")


@dataclass(frozen=True)
class OperatorTable:
    """What one TensorRT version is held against.

    Attributes:
        tensorrt: the version asked for.
        listed: the version of the list.
        revision: the commit of the list.
        source: where the list is published.
        additions: versions whose changelog entries were added.
        opsets: first and last opset.
        operators: standard operator -> element types.
        lifts: restrictions that a later version lifted, such as ``Slice axes``.
        checkers: what is asked of attributes.
    """

    tensorrt: str
    listed: str
    revision: str
    source: str
    additions: tuple[str, ...]
    opsets: tuple[int, int]
    operators: Mapping[str, frozenset[str]]
    lifts: frozenset[str]
    checkers: Checkers

    @property
    def provenance(self) -> str:
        """One line for reports."""
        more = f", with the changelog's additions of {', '.join(self.additions)}" if self.additions else ""
        return f"list of TensorRT {self.listed} ({self.source} at {self.revision[:12]}){more}"


@cache
def table_for(tensorrt: str) -> OperatorTable:
    """Return the table that a TensorRT version is held against.

    Raises:
        UserError: not a version, or older than the oldest list.
    """
    version = parse_version(tensorrt)
    listed = [name for name in LISTS if parse_version(name) <= version]
    if not listed:
        raise UserError(
            f"There is no list of operators for TensorRT {tensorrt}: the oldest is for {LISTS[0]}.",
            code="tensorrt-too-old",
        )
    base = _load(f"tensorrt-{listed[-1]}.json")
    operators = {name: set(types) for name, types in base["operators"].items()}
    used: list[str] = []
    lifts: set[str] = set()
    for entry in _load("additions.json")["additions"]:
        if parse_version(entry["tensorrt"]) > version:
            continue
        lifts.update(entry.get("lifts", ()))
        if parse_version(entry["tensorrt"]) <= parse_version(listed[-1]):
            continue  # the list itself has it
        used.append(entry["tensorrt"])
        for name, types in {**entry.get("operators", {}), **entry.get("types", {})}.items():
            operators.setdefault(name, set()).update(types)
    return OperatorTable(
        tensorrt=tensorrt,
        listed=listed[-1],
        revision=base["revision"],
        source=base["source"],
        additions=tuple(used),
        opsets=(base["opsets"][0], base["opsets"][1]),
        operators={name: frozenset(types) for name, types in operators.items()},
        lifts=frozenset(lifts),
        checkers=checkers_for(tensorrt),
    )


def _load(name: str) -> Any:
    return json.loads(files(__package__).joinpath("tables", name).read_text(encoding="utf-8"))
