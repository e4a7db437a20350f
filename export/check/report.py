"""The check's report: a table for people, JSON for programs."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from divprune_edge.export.check.bundle import Report
from divprune_edge.export.check.findings import EVIDENCE, Finding, errors
from divprune_edge.models.memory import ASSUMPTIONS, Forecast, human
from divprune_edge.plugins.trtexec import needs_stripped


def report_json(report: Report) -> str:
    """Return the report as one JSON object."""
    target, known = report.target, report.forecast
    found: dict[str, Any] = {
        "bundle": str(report.bundle),
        "target": target.name,
        "tensorrt": target.tensorrt,
        "operators": report.provenance,
        "attributes": report.attributes,
        "evidence": evidence(report),
        "clean": report.clean,
        "selector_variant": variant(report),
        "graphs": [
            {"file": g.file, "nodes": g.nodes, "opset": g.opset, "plugin": g.plugin} for g in report.graphs
        ],
        "findings": [
            {
                "graph": f.graph,
                "severity": f.severity,
                "rule": f.rule,
                "operator": f.op,
                "message": f.message,
                "node": f.node,
                "count": f.count,
            }
            for f in report.findings
        ],
        "memory": None if known is None else _memory(known, report),
        "refused": report.refused,
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def _memory(known: Forecast, report: Report) -> dict[str, Any]:
    return {
        "memory": known.memory,
        "system": known.system,
        "available": known.available,
        "parts": dict(known.parts),
        "total": known.total,
        "fits": known.fits,
        "weights_stored": report.stored,
        "build": {
            "device": known.build_device,
            "total": known.build_total,
            "swap": known.swap,
        },
        "widest_node": report.widest.node,
        "values_of_unknown_size": report.widest.unknown,
        "assumptions": list(ASSUMPTIONS),
    }


def variant(report: Report) -> str | None:
    """Return which selector files this TensorRT needs."""
    if report.target.tensorrt is None:
        return None
    return "selectors/stripped" if needs_stripped(report.target.tensorrt) else "selectors"


def evidence(report: Report) -> str:
    """Say how much the report is worth."""
    if report.target.tensorrt is None:
        return "what is known of ONNX Runtime's kernels (docs/architecture.md); run the bundle to be sure"
    return f"{EVIDENCE}, held against published operator lists and rules; nothing of it has run on the target"


def show_report(report: Report) -> None:
    """Print the report."""
    console = Console(highlight=False, soft_wrap=True)
    target = report.target
    version = "" if target.tensorrt is None else f", TensorRT {target.tensorrt}"
    console.print(f"[bold]{report.bundle}[/bold] on [bold]{target.title}[/bold]{version}")
    if report.provenance is not None:
        console.print(f"Operators: {report.provenance}.")
        console.print(f"Attributes: {report.attributes}.")
        console.print(f"Selector files: {variant(report)} (the plugin takes their node where there is one).")
    console.print(_graphs(report))
    for finding in report.findings:
        console.print(_line(finding))
    if report.forecast is not None:
        console.print(_forecast(report.forecast, report.stored))
        console.print(
            f"Activations: what is alive at once at the widest node ({report.widest.node or 'none'}), a prefill in one "
            "piece, nothing fused."
        )
        for sentence in ASSUMPTIONS:
            console.print(f"Assumed: {sentence}.")
    if report.refused is not None:
        console.print(f"[red]{report.refused}[/red]")
    bad = len(errors(report.findings))
    why = [f"{bad} error{'s' * (bad != 1)}"] * bool(bad) + ["memory"] * (report.refused is not None)
    verdict = (
        "[green]nothing against it[/green]" if report.clean else f"[red]refused[/red] ({', '.join(why)})"
    )
    console.print(f"Verdict: {verdict}. Evidence: {evidence(report)}.")


def _graphs(report: Report) -> Table:
    table = Table(title="Graphs", title_justify="left")
    for column in ("file", "opset", "nodes", "errors", "warnings", ""):
        table.add_column(column, justify="left" if column in ("file", "") else "right", overflow="fold")
    for graph in report.graphs:
        of = [f for f in report.findings if f.graph == graph.file]
        bad = len(errors(of))
        note = "plugin" if graph.plugin else ""
        table.add_row(graph.file, str(graph.opset), str(graph.nodes), str(bad), str(len(of) - bad), note)
    return table


def _line(finding: Finding) -> str:
    colour = "red" if finding.severity == "error" else "yellow"
    times = f"{finding.count} nodes, first " if finding.count > 1 else ""
    where = f" ({times}{escape(finding.node)})" if finding.node else ""
    return f"[{colour}]{finding.severity}[/{colour}] {finding.graph}: {escape(finding.message)}{where}"


def _forecast(known: Forecast, stored: int) -> Table:
    table = Table(title="Memory", title_justify="left")
    table.add_column("part")
    table.add_column("", justify="right")
    table.add_row("weights, as the files store them", human(stored))
    for label, size in known.parts.items():
        table.add_row(label, human(size))
    table.add_row("running, together", human(known.total), style="bold")
    table.add_row(
        f"there is ({human(known.memory)} less {human(known.system)} for the system)", human(known.available)
    )
    table.add_row("building, on the GPU", human(known.build_device))
    table.add_row("building, host and GPU", human(known.build_total))
    if known.swap:
        table.add_row("swap for building", human(known.swap), style="yellow")
    return table
