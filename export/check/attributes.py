"""What the static checkers of TensorRT's ONNX parser ask of attributes and outputs.

The checkers of four releases are at hand. A version between two of them is held against both neighbours: what both
refuse is refused, what one refuses is unknown. The files are made by
:mod:`divprune_edge.export.check.generate_attributes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from divprune_edge.export.check.findings import Severity
from divprune_edge.export.check.graph import Node
from divprune_edge.models.tensorrt import parse_version

READ = ("10.1", "10.11", "10.14", "11.0")
"""The releases whose checkers are at hand, in order."""


@dataclass(frozen=True)
class Constraints:
    """What the nodes of one operator may carry.

    Attributes:
        absent: attributes that must be left out.
        values: attribute -> what it may be where it is given.
        outputs: how many outputs a node may have, None for all.
        unread: attributes that are checked in a way that the table does not hold; ``*`` is any.
        refused: the operator is not taken at all.
    """

    absent: tuple[str, ...] = ()
    values: Mapping[str, tuple[int | float | str, ...]] = field(default_factory=dict)
    outputs: int | None = None
    unread: tuple[str, ...] = ()
    refused: bool = False

    def violations(self, node: Node) -> dict[str, str]:
        """Return what is refused (an attribute, ``outputs``, or the operator as a whole) -> one clause."""
        found = {}
        if self.refused:
            found["operator"] = f"{node.op} is not taken"
        for name in self.absent:
            if name in node.attributes:
                found[name] = f"{node.op}'s attribute {name} is not taken"
        for name, allowed in self.values.items():
            if name in node.attributes and (value := _plain(node.attributes[name])) not in allowed:
                found[name] = f"{node.op} has {name} = {value}; it must be {' or '.join(map(str, allowed))}"
        if self.outputs is not None and any(tensor is not None for tensor in node.outputs[self.outputs :]):
            behind = "the first" if self.outputs == 1 else f"number {self.outputs}"
            found["outputs"] = f"{node.op}'s outputs behind {behind} are not given"
        return found

    def unknown(self, node: Node) -> list[str]:
        """Return the attributes of a node that the table says nothing of."""
        return [name for name in node.attributes if name in self.unread or "*" in self.unread]


@dataclass(frozen=True)
class CheckerTable:
    """The checkers of one release: version, where they are published, their commit, operator -> constraints."""

    tensorrt: str
    source: str
    revision: str
    operators: Mapping[str, Constraints]


@dataclass(frozen=True)
class Checkers:
    """What one TensorRT version is held against: its own checkers, or those of its neighbours.

    Attributes:
        tensorrt: the version asked for.
        tables: its own, or the next older and the next newer one, as far as there are such.
        own: whether they are its own.
    """

    tensorrt: str
    tables: tuple[CheckerTable, ...]
    own: bool

    @property
    def provenance(self) -> str:
        """One line for reports."""
        revisions = " and ".join(table.revision[:12] for table in self.tables)
        more = "" if self.own else f"; those of {self.tensorrt} were not read"
        versions = " and ".join(table.tensorrt for table in self.tables)
        return f"checkers of {versions} ({self.tables[0].source} at {revisions}){more}"

    def findings(self, node: Node) -> dict[str, tuple[Severity, str]]:
        """Return what is refused or unknown (see :meth:`Constraints.violations`) -> severity, one sentence."""
        found: dict[str, tuple[Severity, str]] = {}
        known = {t.tensorrt: t.operators[node.op] for t in self.tables if node.op in t.operators}
        refused = {version: constraints.violations(node) for version, constraints in known.items()}
        clauses = {subject: clause for each in refused.values() for subject, clause in each.items()}
        for subject, clause in clauses.items():
            by = [version for version, each in refused.items() if subject in each]
            sentence = f"{clause}, say the checkers of TensorRT {' and '.join(by)}"
            sentence += "".join(
                f", but not those of {t.tensorrt}" for t in self.tables if t.tensorrt not in by
            )
            sure = self.own or len(by) > 1
            if not self.own:
                unknown = "" if sure else ", so for it this is unknown"
                sentence += f"; those of {self.tensorrt} itself were not read{unknown}"
            found[subject] = ("error" if sure else "warning", sentence)
        for version, constraints in known.items():
            for name in constraints.unknown(node):
                checked = f"{node.op}'s attribute {name} is checked by TensorRT {version}"
                found.setdefault(name, ("warning", f"{checked} in a way that its table does not hold"))
        return found


@cache
def checkers_for(tensorrt: str) -> Checkers:
    """Return the checkers that a TensorRT version, no older than the oldest of them, is held against."""
    version = parse_version(tensorrt)
    for name in READ:
        if parse_version(name) == version:
            return Checkers(tensorrt, (_load(name),), own=True)
    older = [name for name in READ if parse_version(name) < version]
    newer = [name for name in READ if parse_version(name) > version]
    return Checkers(tensorrt, tuple(_load(name) for name in (*older[-1:], *newer[:1])), own=False)


@cache
def _load(tensorrt: str) -> CheckerTable:
    name = f"attributes-{tensorrt}.json"
    table = json.loads(files(__package__).joinpath("tables", name).read_text(encoding="utf-8"))
    operators = {op: Constraints() for op in table["unconstrained"]}
    operators |= {op: Constraints(refused=True) for op in table["refused"]}
    operators |= {op: _constraints(entry) for op, entry in table["operators"].items()}
    return CheckerTable(table["tensorrt"], table["source"], table["revision"], operators)


def _constraints(entry: dict[str, Any]) -> Constraints:
    return Constraints(
        absent=tuple(entry.get("absent", ())),
        values={name: tuple(allowed) for name, allowed in entry.get("values", {}).items()},
        outputs=entry.get("outputs"),
        unread=tuple(entry.get("unread", ())),
    )


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
