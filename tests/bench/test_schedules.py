"""Settings of equal operations, and what becomes of answers and times in tables and the chart."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bench.schedules
from bench.schedule_chart import chart
from bench.schedule_settings import POINTS, operations, settings
from bench.schedule_tables import rows, tables
from bench.schedules import main, plan_of
from divprune_edge.runtime.lab.profiling.measure import MeasuredAnswer

TOKENS = 576
DECODER = plan_of(TOKENS).spec.decoder
EVERY = list(settings(DECODER, TOKENS, {}))
ROOT = Path(__file__).parents[2]


def test_settings_of_a_share_cost_the_same() -> None:
    whole = operations(DECODER, EVERY[0].held(DECODER.layers))
    for setting in EVERY[1:]:
        share = operations(DECODER, setting.held(DECODER.layers)) / whole
        assert setting.share - 0.01 < share <= setting.share, setting.name
    assert len({setting.name for setting in EVERY}) == len(EVERY)
    kinds = {(setting.share, setting.kind) for setting in EVERY[1:]}
    assert (0.1, "schedule alone") not in kinds, "a layer on all tokens costs more than that"
    assert {share for share, _ in kinds} == {point.share for point in POINTS}


def answered(image: str) -> dict[str, object]:
    """Three questions about an image: random is wrong about one of them, all else right."""
    answers = {
        one.name: [("color", True), ("shape", True), ("shape", one.method != "random")] for one in EVERY
    }
    return {"image": image, "answers": answers}


def test_answers_and_times_become_tables_and_a_chart() -> None:
    """The second round is twice as slow for all; random's prefill, of 60 ms otherwise, takes half of its time."""
    stages = {one.name: (5.0, 25.0, 10.0, 30.0 if one.method == "random" else 60.0) for one in EVERY}
    timed = [
        [MeasuredAnswer(tuple(slower * ms for ms in stages[one.name]), ()) for slower in (1, 2)]
        for one in EVERY
    ]
    found = rows(EVERY, DECODER, [answered("a"), answered("b")], timed)
    assert {row["right"] for row in found if row["method"] != "random"} == {6}
    random = next(row for row in found if row["method"] == "random")
    assert (random["right"], random["questions"], random["macro"]) == (4, 6, 0.75)
    assert (random["ttft_ms"], random["ttft_share"], random["ttft_interval"]) == (105.0, 0.7, (0.7, 0.7))
    assert (random["prefill_ms"], random["prefill_share"]) == (45.0, 0.5)
    assert random["types"]["shape"]["right"] == 2
    text = tables(found)
    assert "| divprune alone | 100.0 (61–100) |" in text
    assert "| random | 66.7 (30–90) |" in text
    assert "| random | 0.70 (0.70–0.70) 0.50 |" in text
    circles = ElementTree.fromstring(chart(found)).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 2 * len(EVERY) + 6


def test_the_page_shows_what_was_measured() -> None:
    result = json.loads((ROOT / "bench/results/schedules.json").read_text())
    page = (ROOT / "docs/schedules.md").read_text().splitlines()
    shown = [line for line in tables(result).splitlines() if line.startswith("|")]
    assert [line for line in shown if line not in page] == []
    assert (ROOT / "docs/images/schedules.svg").read_text().rstrip() == chart(result)


def test_bundles_are_asked_once_and_timed_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [one for one in EVERY if one.share in (1.0, 0.1) and one.method in ("divprune", "fastv")]
    monkeypatch.setattr(bench.schedules, "fits", lambda work: {})
    monkeypatch.setattr(bench.schedules, "settings", lambda *_: few)
    command = [
        "--work",
        str(tmp_path),
        "--json",
        str(tmp_path / "found.json"),
        "--images",
        "1",
        "--rounds",
        "2",
    ]
    main(command)
    journal = (tmp_path / "answers.jsonl").read_text()
    main(command)
    assert (tmp_path / "answers.jsonl").read_text() == journal
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["kind"], row["method"]) for row in found] == [(one.kind, one.method) for one in few]
    assert {row["questions"] for row in found} == {len(json.loads(journal)["answers"][few[0].name])}
    assert found[0]["right"] > 0
    for row in found:
        assert 0 < row["prefill_ms"] < row["ttft_ms"]
    assert found[0]["ttft_share"] == found[0]["prefill_share"] == 1.0
