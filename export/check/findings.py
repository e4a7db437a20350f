"""What the linter has to say, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["error", "warning"]
EVIDENCE = "E2"
"""Checked against published lists and rules; nothing has run on the target."""


@dataclass(frozen=True)
class Finding:
    """One reason why a target may not take a graph; equal ones of a graph are one finding with a count.

    Attributes:
        graph: the file in the bundle.
        severity: an ``error`` is refused by list or checkers; a ``warning`` is outside of what they promise.
        rule: ``operator``, ``dtype``, ``opset``, ``attribute`` or the name of a rule.
        op: the operator.
        message: one sentence.
        node: the first node's name.
        count: how many nodes.
    """

    graph: str
    severity: Severity
    rule: str
    op: str
    message: str
    node: str = ""
    count: int = 1


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with equal ones counted together, errors first, in the order of appearance."""
    seen: dict[Finding, tuple[str, int]] = {}
    for finding in findings:
        key = replace(finding, node="", count=1)
        node, count = seen.get(key, (finding.node, 0))
        seen[key] = (node, count + finding.count)
    merged = [replace(key, node=node, count=count) for key, (node, count) in seen.items()]
    return sorted(merged, key=lambda finding: finding.severity != "error")


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Return those that the list refuses."""
    return [finding for finding in findings if finding.severity == "error"]
