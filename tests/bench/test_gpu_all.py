"""What is compared with a target is what the parts really write."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu_all import TARGETS, UNCAPTURED, WARPGROUPS, _judged, _line
from bench.selector_forms import SIZES


def result(ms: float) -> dict[str, Any]:
    names = (
        "preprocess",
        "vision",
        "select",
        "prefill",
        "decode step",
    )  # as `runtime profile --json` calls them
    stages = [{"stage": name, "ms": {"median": ms}} for name in names]
    launches = 2 if ms < 1 else 4
    rows = [{"size": str(size), "us": {"kernel": 1000 * ms}, "launches": launches} for size in SIZES]
    variants = [{"stages": stages}, {"stages": stages}]
    uncaptured = [{"stages": [{"stage": name, "ms": {"median": 1.0}} for name in names]} for _ in range(2)]
    return {
        "selector": {"float16": {"rows": rows}, WARPGROUPS: {"rows": rows}},
        "models": {"fp16": {"variants": variants}, UNCAPTURED: {"variants": uncaptured}},
        "eager": dict.fromkeys(names, 1.0),
    }


@pytest.mark.parametrize(("ms", "met"), [(0.01, True), (100.0, False)])
def test_every_target_finds_its_figure(ms: float, met: bool) -> None:
    judged = [_judged(target, result(ms)) for target in TARGETS]
    assert [one["met"] for one in judged] == [met] * len(TARGETS)
    assert all(one["measured"] > 0 for one in judged)


def test_what_is_missing_is_said() -> None:
    for target in TARGETS:
        one = _judged(
            target, {"selector": {"float16": None, WARPGROUPS: None}, "models": {"fp16": None}, "eager": None}
        )
        assert one["met"] is None
        assert "not measured" in _line(one)
