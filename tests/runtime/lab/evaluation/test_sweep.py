"""``python -m runtime sweep``: the front, the target, the page."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from raising import assert_told, refused

from divprune_edge.manifest import MANIFEST
from divprune_edge.runtime.lab.charts import WIDTH, Axis
from divprune_edge.runtime.lab.evaluation import tables
from divprune_edge.runtime.lab.evaluation.charts import HEIGHT, scatter
from divprune_edge.runtime.lab.evaluation.page import sweep_page
from divprune_edge.runtime.lab.evaluation.results import Row, Share
from divprune_edge.runtime.lab.evaluation.sweep import (
    Entry,
    largest_within,
    pareto_front,
    parse_milliseconds,
    time_to_first_token,
    verdict,
    visual_tokens,
)


def entry(
    name: str,
    keep: int,
    right: int,
    ttft: float,
    *,
    reference: bool = False,
    precision: str = "fp32",
    variant: str | None = None,
) -> Entry:
    share = Share(right, 100)
    row = Row(
        method=f"{name}-{keep}",
        name=name,
        keep=keep,
        reference=reference,
        all=share,
        kinds={"all": share},
        macro=right / 100,
        ttft_ms=ttft,
        total_ms=ttft + 5,
        coverage=0.4,
        smallest=0.1,
        variant=variant,
    )
    return Entry(precision, row)


ENTRIES = [
    entry("none", 576, 90, 100),
    entry("divprune", 58, 80, 40),
    entry("random", 58, 70, 38, reference=True),
    entry("divprune", 144, 90, 60),
    entry("holov", 144, 85, 55),
    entry("divprune", 144, 88, 30, precision="int8"),
]


def test_front_by_hand() -> None:
    front = [(e.label, e.precision) for e in pareto_front(ENTRIES, visual_tokens)]
    assert front == [("divprune-58", "fp32"), ("divprune-144", "fp32")]
    front = [(e.label, e.precision) for e in pareto_front(ENTRIES, time_to_first_token)]
    assert front == [("divprune-144", "int8"), ("divprune-144", "fp32")]


def test_largest_budget_within_a_target() -> None:
    found = largest_within(ENTRIES, 58)
    assert found is not None
    assert (found.row.keep, found.precision) == (144, "int8")  # 88 % beats holov's 85 %
    assert largest_within(ENTRIES, 150) is ENTRIES[0]
    assert largest_within(ENTRIES, 29) is None
    assert "Within 58 ms to the first token: divprune-144 (144 visual tokens, int8, 30.0 ms" in verdict(
        ENTRIES, 58
    )
    assert "Nothing here meets 2 ms to the first token: the fastest is divprune-144 (int8)" in verdict(
        ENTRIES, 2
    )


def test_times() -> None:
    assert [parse_milliseconds(t) for t in ("150ms", "0.15s", "150", " 1.5 s ")] == [150, 150, 150, 1500]
    for text in ("", "fast", "-3ms", "0", "1m"):
        with refused("option-invalid", "--target-ttft", text):
            parse_milliseconds(text)


def test_axis() -> None:
    axis = Axis(10, 1000, 0, 100, log=True)
    assert [round(axis.at(v), 6) for v in (10, 100, 1000)] == [0, 50, 100]
    assert axis.ticks() == [10, 20, 30, 50, 70, 100, 200, 300, 500, 700, 1000]
    assert Axis(42, 78, 0, 1).ticks() == [50, 60, 70]


def test_chart_is_valid_svg_with_everything_inside() -> None:
    root = ET.fromstring(scatter(ENTRIES, visual_tokens, "A < B & C", "tokens"))
    titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(ENTRIES)
    assert "divprune-58 (fp32): 80.0 %, 58 tokens, TTFT 40.0 ms" in titles
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.get("cx", "")) < WIDTH
        assert 0 < float(circle.get("cy", "")) < HEIGHT


def test_a_time_that_was_not_measured_is_not_told() -> None:
    chart = scatter([entry("none", 576, 90, 100), entry("divprune", 58, 80, 0)], visual_tokens, "a", "b")
    assert "no pruning (fp32): 90.0 %, 576 tokens, TTFT 100.0 ms</title>" in chart
    assert "divprune-58 (fp32): 80.0 %, 58 tokens</title>" in chart


def test_few_budgets_are_marked_where_they_are() -> None:
    ticks = r'text-anchor="middle">([\d.]+)</text>'
    by_tokens = scatter(ENTRIES, visual_tokens, "chart", "tokens")
    assert re.findall(ticks, by_tokens) == ["58", "144", "576"]
    assert by_tokens.count('opacity=".04"') == 2  # one budget is one method's alone
    many = [entry("divprune", keep, 50, 10) for keep in range(10, 90, 10)]
    assert re.findall(ticks, scatter(many, visual_tokens, "chart", "tokens")) == [
        "10",
        "20",
        "30",
        "50",
        "70",
    ]


def test_bundles_are_told_apart() -> None:
    """In every table: their rows are called alike."""
    two = [
        entry("none", 576, 90, 100, variant=variant) for variant in ("plain (fp32)", "cut (fp32, fastv: …)")
    ]
    page = sweep_page(two, {"model": "demo"}, None)
    text, table = tables.markdown([e.row for e in two]), tables.to_csv([e.row for e in two])
    assert "<th>bundle</th>" in page
    for shown in (page, text, table):
        assert "plain (fp32)" in shown
        assert "cut (fp32, fastv: …)" in shown
    assert [row["bundle"] for row in csv.DictReader(table.splitlines())] == [e.row.variant for e in two]
    rows = [e.row for e in ENTRIES]
    for shown in (sweep_page(ENTRIES, {"model": "demo"}, None), tables.markdown(rows), tables.to_csv(rows)):
        assert "bundle" not in shown


class _Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.seen += [v or "" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("data:")]


def test_page_needs_nothing_else() -> None:
    parser = _Fetches()
    parser.feed(sweep_page(ENTRIES, {"model": "<demo>", "data": "demo"}, "It is so."))
    assert parser.seen == []
    assert parser.rows == 1 + len(ENTRIES)
    assert "&lt;demo&gt;" in sweep_page(ENTRIES, {"model": "<demo>"}, None)


def test_command(demo_bundle: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    options = ("--images", 1, "--output", out, "--max-tokens", 2, "--threads", 1, "--target-ttft", "60s")
    result = command("sweep", demo_bundle, "--keep", "58", *options)
    assert result.code == 0, result.err
    assert "Within 60000 ms to the first token: no pruning (576 visual tokens" in result.out
    assert {p.name for p in out.iterdir()} == {
        "pairs.csv",
        "records.jsonl",
        "sweep.csv",
        "sweep.html",
        "sweep.json",
        "sweep.md",
        "sweep-latency.svg",
        "sweep-tokens.svg",
    }
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["none", "divprune-58", "random-58", "uniform-58"]
    assert json.loads((out / "sweep.json").read_text())["images"] == 1
    ET.fromstring((out / "sweep-latency.svg").read_text())


def test_bundles_of_two_models(demo_bundle: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    """One chart would compare what cannot be compared."""
    other = tmp_path / "other"
    shutil.copytree(demo_bundle, other)
    manifest = json.loads((other / MANIFEST).read_text(encoding="utf-8"))
    manifest["source"] |= {"model": "tiny", "config_sha256": "0" * 64}
    (other / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    out = tmp_path / "out"
    result = command("sweep", demo_bundle, other, "--images", 1, "--output", out)
    assert_told(result.code, result.err, "models-mixed", demo_bundle, other, "(tiny, demo)")
    assert not out.exists()
