"""The check's report: a table for people, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from divprune_edge.console import literal
from divprune_edge.export.check.asked import EVIDENCE as BUILT
from divprune_edge.export.check.asked import GraphAnswer, RtxAnswers
from divprune_edge.export.check.bundle import CheckReport
from divprune_edge.export.check.findings import EVIDENCE, Finding, errors
from divprune_edge.models.memory import ASSUMPTIONS, Forecast, human
from divprune_edge.models.targets import Target
from divprune_edge.models.tensorrt import TENSORRT_RTX, needs_stripped


def report_json(report: CheckReport) -> str:
    """Return the report as one JSON object."""
    target, known = report.target, report.forecast
    found: dict[str, Any] = {
        "bundle": str(report.bundle),
        "target": target.name,
        "tensorrt": target.tensorrt,
        "operators": report.provenance,
        "attributes": report.attributes,
        "tensorrt_rtx": None if report.asked is None else asdict(report.asked),
        "not_asked": report.unasked,
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


def _memory(known: Forecast, report: CheckReport) -> dict[str, Any]:
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


def variant(report: CheckReport) -> str | None:
    """Return which selector files this TensorRT needs."""
    if report.provenance is None or report.target.tensorrt is None:
        return None
    return "selectors/stripped" if needs_stripped(report.target.tensorrt) else "selectors"


def evidence(report: CheckReport) -> str:
    """Say how much the report is worth."""
    if report.target.tensorrt is None:
        return "what is known of ONNX Runtime's kernels (docs/architecture.md); run the bundle to be sure"
    known = []
    if report.provenance is not None:
        known.append(f"{EVIDENCE}, held against published operator lists and rules")
    asked = report.asked
    if asked is not None and asked.unbuilt is None and all(answer.words is None for answer in asked.answers):
        known.append(f"{BUILT}, parsed and built by {asked.library} for {_sms(asked)}")
        if report.target.edition is not TENSORRT_RTX:
            known[-1] += f", which proves no engine of {report.target.software} for {_sms(report.target)}"
    return "; ".join([*known, "nothing of it has run on the target"])


def _sms(of: RtxAnswers | Target) -> str:
    return ", ".join(f"sm_{sm}" for sm in of.sms)


def show_report(report: CheckReport) -> None:
    """Print the report."""
    console = Console(highlight=False, soft_wrap=True)
    target = report.target
    version = "" if target.tensorrt is None else f", {target.software}"
    console.print(f"[bold]{literal(report.bundle)}[/bold] on [bold]{target.title}[/bold]{version}")
    if report.provenance is not None:
        console.print(f"Operators: {report.provenance}.")
        console.print(f"Attributes: {report.attributes}.")
        console.print(f"Selector files: {variant(report)} (the plugin takes their node where there is one).")
    if target.tensorrt is not None:
        console.print(literal(_who_was_asked(report)))
    console.print(_graphs(report))
    for finding in report.findings:
        console.print(_line(finding))
    if report.forecast is not None:
        console.print(_forecast(report.forecast, report.stored))
        console.print(
            f"Activations: what is alive at once at the widest node ({literal(report.widest.node or 'none')}), "
            "a prefill in one piece, nothing fused."
        )
        for sentence in ASSUMPTIONS:
            console.print(f"Assumed: {sentence}.")
    if report.refused is not None:
        console.print(f"[red]{literal(report.refused)}[/red]")
    bad = len(errors(report.findings))
    why = [f"{bad} error{'s' * (bad != 1)}"] * bool(bad) + ["memory"] * (report.refused is not None)
    verdict = (
        "[green]nothing against it[/green]" if report.clean else f"[red]refused[/red] ({', '.join(why)})"
    )
    console.print(f"Verdict: {verdict}. Evidence: {evidence(report)}.")
    if bad and report.dialect != target.dialect:
        console.print(
            f"The bundle is in dialect {report.dialect}, {target.name} takes {target.dialect}: export it with --target "
            f"{target.name}."
        )


def _who_was_asked(report: CheckReport) -> str:
    asked = report.asked
    if asked is None:
        return f"TensorRT-RTX was not asked: {report.unasked}."
    if asked.unbuilt is None:
        return f"Asked: {asked.library}, its parser, and its builder for {_sms(asked)}."
    return f"Asked: {asked.library}, its parser alone (not built: {asked.unbuilt.rstrip('.')})."


def _answer(answer: GraphAnswer | None) -> str:
    if answer is None:
        return ""
    if answer.words is not None:
        return "refused"
    return "parsed" if answer.size is None else f"built, {answer.seconds:.1f} s, {human(answer.size)}"


def _graphs(report: CheckReport) -> Table:
    answers = {} if report.asked is None else {answer.file: answer for answer in report.asked.answers}
    table = Table(title="Graphs", title_justify="left")
    plugins = any(graph.plugin for graph in report.graphs)
    last = [*["plugin"] * plugins, *[TENSORRT_RTX.title] * bool(answers)]
    for column in ("file", "opset", "nodes", "errors", "warnings", *last):
        table.add_column(column, justify="left" if column in ("file", *last) else "right", overflow="fold")
    for graph in report.graphs:
        of = [f for f in report.findings if f.graph == graph.file]
        bad = len(errors(of))
        row = [literal(graph.file), str(graph.opset), str(graph.nodes), str(bad), str(len(of) - bad)]
        row += ["yes" if graph.plugin else ""] * plugins
        # Of a selector it was asked about the file with the local function, whatever the target's TensorRT needs.
        told = answers.get(graph.file) or answers.get(graph.file.replace("/stripped/", "/"))
        table.add_row(*row, *[_answer(told)] * bool(answers))
    return table


def _line(finding: Finding) -> str:
    colour = "red" if finding.severity == "error" else "yellow"
    times = f"{finding.count} nodes, first " if finding.count > 1 else ""
    where = f" ({times}{literal(finding.node)})" if finding.node else ""
    return (
        f"[{colour}]{finding.severity}[/{colour}] {literal(finding.graph)}: {literal(finding.message)}{where}"
    )


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
