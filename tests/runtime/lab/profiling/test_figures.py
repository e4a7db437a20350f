"""docs/profiling.md: its figures are those of bench/results/profile.json, its options those of the commands."""

from __future__ import annotations

import json
import re

from conftest import ROOT, run_module

from divprune_edge.runtime.lab.profiling.limit import Interval

TEXT = (ROOT / "docs" / "profiling.md").read_text(encoding="utf-8")
PROFILE = json.loads((ROOT / "bench" / "results" / "profile.json").read_text(encoding="utf-8"))


def test_savings() -> None:
    for saving in PROFILE["savings"]:
        plural = "s" if saving["tokens"] > 1 else ""
        row = (
            f"| {saving['tokens']} token{plural} | {100 * saving['prefill_share']:.0f} % | "
            f"{Interval(**saving['limit'])} | {Interval(**saving['measured'])} |"
        )
        assert row in TEXT
    assert PROFILE["savings"][1]["sentence"] in " ".join(TEXT.replace("\n> ", " ").split())


def test_stages() -> None:
    pruned, full = ({row["stage"]: row for row in v["stages"]} for v in PROFILE["variants"])
    for stage in pruned:
        (row,) = re.findall(rf"\| {stage} \| ([\d.]+) \| ([\d.]+) \| (\S+) \| (\S+) \|", TEXT)
        for text, found in zip(row[:2], (pruned, full), strict=True):
            assert float(text) == round(found[stage]["ms"]["median"], len(text.partition(".")[2]))
        for text, found in zip(row[2:], (pruned, full), strict=True):
            roofline = found[stage]["roofline"]
            assert (
                text == "–"
                if roofline is None
                else float(text) == round(roofline["ms"], len(text.partition(".")[2]))
            )


def test_options() -> None:
    known = {
        name: run_module("runtime", name, "--help").stdout.replace("\n", " ")
        for name in ("profile", "trtexec")
    }
    for line in TEXT.splitlines():
        for name, said in known.items():
            if f"python -m runtime {name}" in line:
                for option in re.findall(r" (--[a-z-]+)", line):
                    assert option in said, line
