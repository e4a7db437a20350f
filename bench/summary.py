"""From samples to medians, ratios and a table."""

from __future__ import annotations

import platform
from pathlib import Path
from statistics import median
from typing import Any

STAGES = ("vision", "select", "prefill", "decode")


_CUT = " cut "
"""In the label of what loses patches inside the encoder."""


def summarise(
    results: list[dict[str, Any]],
    skipped: list[dict[str, str]],
    threads: int,
    command: list[str],
    text_tokens: int,
) -> dict[str, Any]:
    """Return one row per engine and budget with medians and spread, and the ratios to the best peers."""
    rows = [_row(result, visual) for result in results for visual in result["samples_ms"]]
    return {
        "command": "python -m bench.speed " + " ".join(command[1:]),
        "threads": threads,
        "text_tokens": text_tokens,
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: v for result in results for name, v in result["versions"].items()},
        "rows": rows,
        "ratios": ratios(rows),
        "skipped": skipped,
        "samples": results,
    }


def _row(result: dict[str, Any], visual: str) -> dict[str, Any]:
    samples = result["samples_ms"][visual]
    row: dict[str, Any] = {
        "label": result["label"],
        "ours": result["engine"] == "ours",
        "visual": int(visual),
        "peak_rss_mb": result["peak_rss_mb"],
        "size_mb": result["size_mb"],
    }
    for stage in STAGES:
        values = [sample[stage] for sample in samples if stage in sample]
        row[stage] = median(values) if values else None
        row[f"{stage}_spread"] = [min(values), max(values)] if values else None
    if row["vision"] is not None:
        totals = [sum(sample[stage] for stage in STAGES[:3]) for sample in samples]
        row["ttft"], row["ttft_spread"] = median(totals), [min(totals), max(totals)]
    else:
        row["ttft"] = row["ttft_spread"] = None
    row["tokens_per_second"] = 1e3 / row["decode"]
    return row


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return our best against the best peer, each ratio above one where we are faster."""
    pruned, everything = min(row["visual"] for row in rows), max(row["visual"] for row in rows)

    def best(stage: str, *, ours: bool, visual: int, cut: bool = False) -> dict[str, Any] | None:
        found = [
            row
            for row in rows
            if row["ours"] is ours
            and row["visual"] == visual
            and row[stage] is not None
            and (_CUT in row.get("label", "")) is cut
        ]
        return min(found, key=lambda row: float(row[stage]), default=None)

    wanted: list[tuple[Any, ...]] = [
        ("TTFT, pruned, against the fastest unpruned peer", "ttft", pruned, everything),
        ("TTFT, pruned, against the fastest pruned peer", "ttft", pruned, pruned),
        ("prefill of the pruned prompt against the fastest peer", "prefill", pruned, pruned),
        ("decode against the fastest peer", "decode", pruned, pruned),
        # For itself, as it costs answers.
        ("TTFT, patches cut inside, against the fastest unpruned peer", "ttft", pruned, everything, True),
    ]
    found = []
    for name, stage, mine, theirs, *cut in wanted:
        us, them = best(stage, ours=True, visual=mine, cut=bool(cut)), best(stage, ours=False, visual=theirs)
        if us is not None and them is not None:
            found.append(
                {
                    "name": name,
                    "ratio": them[stage] / us[stage],
                    "ours": us["label"],
                    "peer": them["label"],
                    "ours_ms": us[stage],
                    "peer_ms": them[stage],
                }
            )
    return found


def show(summary: dict[str, Any]) -> None:
    """Print the table in Markdown."""
    print(f"\n{summary['processor']}, {summary['threads']} threads; `{summary['command']}`")
    print(", ".join(f"{name} {version}" for name, version in sorted(summary["versions"].items())))
    print("\nMilliseconds, median [smallest, largest]:\n")
    print(
        "| engine | visual | vision | select | prefill | TTFT | decode tok/s | peak RSS MB | size MB |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for row in sorted(summary["rows"], key=lambda row: (row["visual"], not row["ours"], row["label"])):
        cells = [_cell(row, stage) for stage in ("vision", "select", "prefill", "ttft")]
        print(
            f"| {row['label']} | {row['visual']} | {' | '.join(cells)} | {row['tokens_per_second']:.1f} | "
            f"{row['peak_rss_mb']:,.0f} | {row['size_mb']:,.0f} |"
        )
    print()
    for ratio in summary["ratios"]:
        print(
            f"- {ratio['name']}: **{ratio['ratio']:.2f}×** ({ratio['ours']} {ratio['ours_ms']:.1f} ms, "
            f"{ratio['peer']} {ratio['peer_ms']:.1f} ms)"
        )
    for skip in summary["skipped"]:
        print(f"- left out: {skip['label']}: {skip['reason']}")


def _cell(row: dict[str, Any], stage: str) -> str:
    if row[stage] is None:
        return "–"
    low, high = row[f"{stage}_spread"]
    return f"{row[stage]:,.0f} [{low:,.0f}, {high:,.0f}]"


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
