"""Settings of equal operations, and what becomes of answers in tables and the chart."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from bench.schedule_chart import chart
from bench.schedules import POINTS, Setting, operations, plan_of, rows, settings, tables
from divprune_edge.models.cost import visual_by_layer

TOKENS = 576
DECODER = plan_of(TOKENS).spec.decoder
EVERY = list(settings(DECODER, TOKENS, {}))


def held(setting: Setting) -> list[int]:
    if setting.schedule is None:
        return [setting.entering] * DECODER.layers
    return list(visual_by_layer(setting.schedule, DECODER.layers))


def test_settings_of_a_share_cost_the_same() -> None:
    whole = operations(DECODER, held(EVERY[0]))
    for setting in EVERY[1:]:
        share = operations(DECODER, held(setting)) / whole
        assert setting.share - 0.01 < share <= setting.share, setting.name
    assert len({setting.name for setting in EVERY}) == len(EVERY)
    kinds = {(setting.share, setting.kind) for setting in EVERY[1:]}
    assert (0.1, "schedule alone") not in kinds, "a layer on all tokens costs more than that"
    assert {share for share, _ in kinds} == {point.share for point in POINTS}


def test_answers_become_tables_and_a_chart(tmp_path: Path) -> None:
    """Three questions about each of two images: random is wrong about one of them, all else right."""
    journal = tmp_path / "answers.jsonl"
    with journal.open("w") as stream:
        for image in ("a", "b"):
            answers = {
                one.name: [
                    ("color", True, 2.0),
                    ("shape", True, 4.0),
                    ("shape", not one.name.endswith("random"), 6.0),
                ]
                for one in EVERY
            }
            stream.write(json.dumps({"image": image, "answers": answers}) + "\n")
    found = rows(EVERY, DECODER, journal)
    assert {row["right"] for row in found if row["method"] != "random"} == {6}
    random = next(row for row in found if row["method"] == "random")
    assert (random["right"], random["questions"], random["macro"], random["prefill_ms"]) == (4, 6, 0.75, 4.0)
    assert random["types"]["shape"]["right"] == 2
    text = tables(found)
    assert "| divprune alone | 100.0 (61–100) 1.00 |" in text
    assert "| random | 66.7 (30–90) 1.00 |" in text
    circles = ElementTree.fromstring(chart(found)).iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 2 * len(EVERY) + 6
