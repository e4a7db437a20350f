"""docs/targets.md has the numbers of the code: targets, operator lists, and the forecast for a 7B model."""

from __future__ import annotations

import pytest
from conftest import ROOT

from divprune_edge.export.check.tables import LISTS, table_for
from divprune_edge.models.dialects import row_bytes
from divprune_edge.models.memory import (
    PROCESS_CARD,
    PROCESS_SHARED,
    SYSTEM_CARD,
    SYSTEM_SHARED,
    WORKSPACE,
    Elements,
    Forecast,
    Need,
    forecast,
    human,
    prefill_activations,
)
from divprune_edge.models.targets import TARGETS, Target

GUIDE = (ROOT / "docs/targets.md").read_text(encoding="utf-8")
# LLaVA-1.5-7B: tests/models/test_memory.py has where these come from.
SEVEN = Elements(vision=311_888_896, matrices=32 * 202_375_168, rest=2 * 131_334_144 + 65 * 4096)
ROWS = 512
DEVICES = [target for target in TARGETS.values() if target.memory_bytes]


def target_row(target: Target) -> str:
    """One row of the table of targets."""
    sm = ", ".join(map(str, target.sms))
    library = f"RTX {target.tensorrt}" if target.backend == "tensorrt-rtx" else target.tensorrt
    software = " / ".join(part or "any" for part in (library, target.cuda, target.python))
    memory = "" if target.memory_bytes is None else f"{target.memory_bytes / 2**30:.0f} GiB"
    if target.memory_bytes is not None and not target.shared_memory:
        memory = f"{target.memory_bytes / 1e9:.0f} GB"
    bandwidth = "" if target.bandwidth is None else f"{target.bandwidth / 1e9:g}"
    rates = " / ".join(
        f"{target.rates[dtype] / 1e12:g}" for dtype in ("fp32", "fp16") if dtype in target.rates
    )
    title = target.title
    versions = software if target.tensorrt else ""
    cells = [
        f"`{target.name}`",
        title,
        sm,
        versions,
        memory,
        bandwidth,
        rates,
        target.dialect,
        target.precision,
    ]
    return "| " + " | ".join(cells) + " |"


def forecast_of(target: Target, precision: str) -> Forecast:
    apart = target.dialect == "decomposed"
    cache = ROWS * 32 * row_bytes(32, 128, 2)
    need = Need(
        vision=SEVEN.vision_bytes("fp16"),
        language=SEVEN.language_bytes(precision),
        cache=cache,
        activations=prefill_activations(4096, 11008, 32, ROWS, (1 + apart) * ROWS, 2) + apart * cache,
        rows=ROWS,
    )
    found = forecast(target, need)
    assert found is not None
    return found


def forecast_row(target: Target) -> str:
    """One row of the table of forecasts."""
    cells = [f"`{target.name}`", human(forecast_of(target, "fp16").available)]
    for precision in ("fp16", "int4"):
        found = forecast_of(target, precision)
        swap = f", build with {human(found.swap)} of swap" if found.swap else ""
        cells.append(f"{human(found.total)}{swap}" if found.fits else f"{human(found.total)}: does not fit")
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_target_is_in_the_table(target: Target) -> None:
    assert target_row(target) in GUIDE


@pytest.mark.parametrize("target", DEVICES, ids=lambda target: target.name)
def test_the_forecast_for_a_7b_model(target: Target) -> None:
    assert forecast_row(target) in GUIDE


def test_every_source_is_named() -> None:
    for target in TARGETS.values():
        for fact, source in target.sources.items():
            unsure = "from memory" in source
            assert not unsure or target.name.removesuffix("-jp7") in GUIDE.split("## From memory")[1], (
                fact,
                source,
            )


def test_which_list_serves_which_version() -> None:
    for listed in LISTS:
        table = table_for(listed)
        assert f"`{table.revision}`" in GUIDE
        assert f"| {listed} | {table.opsets[0]}–{table.opsets[1]} |" in GUIDE
    for version in ("10.3", "10.16", "11.4"):
        assert f"| {version} | {table_for(version).listed} |" in GUIDE


def test_the_constants_of_the_forecast() -> None:
    for size in (SYSTEM_SHARED, SYSTEM_CARD, PROCESS_SHARED, PROCESS_CARD, WORKSPACE):
        assert human(size) in GUIDE
