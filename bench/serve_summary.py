"""What the loads on servers come to: tables, and the load that is taken at a time to the first token.

``python -m bench.serve_summary`` writes those of ``bench/results/serve.json`` into ``docs/serving.md``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divprune_edge.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "bench/results/serve.json", ROOT / "docs/serving.md"
MARKS = "<!-- load -->\n", "<!-- /load -->"
BOUNDS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Seconds of TTFT at its 95th percentile for which the load is reported that a server takes."""


def sustained(rows: Sequence[dict[str, Any]], bound: float) -> tuple[float, bool] | None:
    """Return the load up to which p95 of TTFT stays below ``bound`` seconds, between measured loads in proportion.

    The second value says whether it may be more: no measured load was too much. None: every load was.
    """
    taken = 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        late = row["ttft_ms"]["p95"] / 1e3 if row.get("ttft_ms") and not row["turned_away"] else float("inf")
        if late > bound:
            if before is None:
                return None
            early = before["ttft_ms"]["p95"] / 1e3
            share = 0.0 if late == float("inf") or late <= early else (bound - early) / (late - early)
            return before["load"] + share * (row["load"] - before["load"]), False
        taken = row["load"]
    return taken, True


def _against(taken: tuple[float, bool] | None, unpruned: tuple[float, bool] | None) -> str:
    """Return a load, and its ratio to what is taken unpruned where that is known; "≥" where more was not tried."""
    if taken is None:
        return "–"
    shown = f"{'≥ ' * taken[1]}{taken[0]:.2f}"
    if unpruned is None or unpruned[1]:
        return shown
    return f"{shown} ({'≥ ' * taken[1]}{taken[0] / unpruned[0]:.1f}×)"


def tables(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| server | visual tokens | images | load, 1/s | answered, 1/s | turned away | TTFT p50 / p95, ms "
        "| between tokens p50 / p95 / p99, ms |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        # There are as many first tokens as requests: too few for a 99th percentile.
        times = [
            " / ".join(f"{value:,.0f}" for value in [*(row.get(name) or {}).values()][:shown])
            for name, shown in (("ttft_ms", 2), ("gap_ms", 3))
        ]
        lines.append(
            f"| {row['server']} | {row['visual']} | {row['images']} | {row['load']:g} "
            f"| {row.get('answers_per_second', 0):.2f} | {row['turned_away']} of {row['requests']} "
            f"| {times[0]} | {times[1]} |"
        )
    lines += [
        "",
        f"| images | server | visual tokens | {' | '.join(f'{bound:g} s' for bound in BOUNDS)} |",
        f"|---|---|---:|{'---:|' * len(BOUNDS)}",
    ]
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        if row["server"].startswith("ours"):
            groups.setdefault((row["images"], row["server"], row["visual"]), []).append(row)
    most = max(visual for _, _, visual in groups)
    for (images, server, visual), rows in groups.items():
        others = next(group for (what, _, n), group in groups.items() if (what, n) == (images, most))
        unpruned = [None if others is rows else sustained(others, bound) for bound in BOUNDS]
        taken = [
            _against(sustained(rows, bound), other) for bound, other in zip(BOUNDS, unpruned, strict=True)
        ]
        lines.append(f"| {images} | {server} | {visual} | {' | '.join(taken)} |")
    batching = found["batching"]
    lines += [
        "",
        f"{batching['at_once']} at once: {batching['together']:.0f} tokens/s, one at a time {batching['one']:.0f}: "
        f"{batching['ratio']:.2f}×. A step takes {batching['step_ms']['together']:.1f} and "
        f"{batching['step_ms']['one']:.1f} ms.",
        *(f"{one['label']}: {one['reason']}" for one in found["skipped"]),
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the tables."""
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    shown = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    write_whole(PAGE, before + MARKS[0] + shown + "\n" + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
