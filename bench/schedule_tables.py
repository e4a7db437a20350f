"""What `bench.schedules` measured: rows for a file, and tables of these in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.schedule_settings import POINTS, Setting, operations
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.runtime.lab.evaluation.scoring import wilson
from divprune_edge.runtime.lab.profiling.measure import STAGES, MeasuredAnswer

BY_TYPE = ("divprune", "transprune", "pyramiddrop", "random")
"""What the second table shows."""
Row = dict[str, Any]


def rows(
    settings: Sequence[Setting],
    decoder: DecoderSpec,
    answered: Sequence[Mapping[str, Any]],
    timed: Sequence[Sequence[MeasuredAnswer]],
) -> list[Row]:
    """Return what each setting answered right, by type and with 95 % intervals, and how long a first token takes.

    Args:
        settings: the unpruned model first.
        decoder: the language model.
        answered: the lines of a journal, each of which is an image's.
        timed: for each setting its answers, round by round.
    """
    whole = operations(decoder, settings[0].held(decoder.layers))
    return [
        {
            **_cost(setting, decoder, whole),
            **_accuracy([found for line in answered for found in line["answers"][setting.name]]),
            **_times("ttft", mine, timed[0], lambda one: one.first_token),
            **_times("prefill", mine, timed[0], lambda one: one.stages[STAGES.index("prefill")]),
        }
        for setting, mine in zip(settings, timed, strict=True)
    ]


def _cost(setting: Setting, decoder: DecoderSpec, whole: int) -> Row:
    held = setting.held(decoder.layers)
    return {
        "kind": setting.kind,
        "share": setting.share,
        "method": setting.method,
        "visual_tokens": held,
        "operations": operations(decoder, held) / whole,
        "cache_rows": statistics.fmean(held),
    }


def _accuracy(answers: Sequence[tuple[str, bool]]) -> Row:
    types: dict[str, list[bool]] = {}
    for kind, right in answers:
        types.setdefault(kind, []).append(right)
    return {
        **_counted([right for _, right in answers]),
        "macro": statistics.fmean(statistics.fmean(found) for found in types.values()),
        "types": {kind: _counted(found) for kind, found in sorted(types.items())},
    }


def _counted(found: Sequence[bool]) -> Row:
    right = sum(found)
    return {"right": right, "questions": len(found), "interval": wilson(right, len(found))}


def _times(
    name: str,
    mine: Sequence[MeasuredAnswer],
    whole: Sequence[MeasuredAnswer],
    time: Callable[[MeasuredAnswer], float],
) -> Row:
    """Return the median in milliseconds, and that of the shares of the unpruned model's time of the same round.

    The 95 % interval of a median lies between the rounds that a fair coin's heads lie between.
    """
    shares = sorted(time(a) / time(b) for a, b in zip(mine, whole, strict=True))
    count = len(shares)
    low, high = wilson(count // 2, count)
    return {
        f"{name}_ms": statistics.median(time(a) for a in mine),
        f"{name}_share": statistics.median(shares),
        f"{name}_interval": (
            shares[max(0, math.floor(low * count) - 1)],
            shares[min(count - 1, math.ceil(high * count))],
        ),
    }


def tables(result: Sequence[Row]) -> str:
    """Return three tables in Markdown: what was right, the times, and by type of question those of :data:`BY_TYPE`."""
    right, times = _overview(result, _right), _overview(result, _shares)
    return f"no pruning: {_right(result[0])}\n\n{right}\n{times}\n{_by_type(result)}"


def _overview(result: Sequence[Row], shown: Callable[[Row], str]) -> str:
    """A row for each method, a column for each share and kind."""
    columns = [(point.share, kind) for point in POINTS for kind in ("schedule alone", "both")]
    found: dict[tuple[float, str, str], Row] = {}
    for row in result[1:]:
        if row["kind"] == "divprune alone":
            found |= {(row["share"], kind, row["kind"]): row for _, kind in columns}
        elif row["kind"] == "fitted alone":
            found[row["share"], "schedule alone", "fitprune, fitted"] = row
        else:
            found[row["share"], row["kind"], row["method"]] = row
    cut = {key[:2] for key in found if key[2] != "divprune alone"}
    columns = [column for column in columns if column in cut]
    names = [f"{share:g}, {kind.removeprefix('schedule ')}" for share, kind in columns]
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---:|" * len(columns)]
    for method in dict.fromkeys(method for *_, method in found):
        cells = (found.get((share, kind, method)) for share, kind in columns)
        lines.append(f"| {method} | {' | '.join('' if row is None else shown(row) for row in cells)} |")
    return "\n".join(lines) + "\n"


def _by_type(result: Sequence[Row]) -> str:
    """A row for each setting, a column for each type: per cent right and its interval."""
    kinds = sorted(result[0]["types"])
    lines = [
        f"| operations | setting | tokens by layer | {' | '.join(kinds)} |",
        "|---|---|---|" + "---:|" * len(kinds),
    ]
    for row in result:
        if row["kind"] != "unpruned" and row["method"] not in BY_TYPE:
            continue
        name = row["kind"] if row["method"] == "divprune" else f"{row['kind']}, {row['method']}"
        cells = [_right(row["types"][kind]) for kind in kinds]
        layers = "/".join(map(str, row["visual_tokens"]))
        lines.append(f"| {row['share']:g} | {name} | {layers} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _right(row: Row) -> str:
    low, high = row["interval"]
    return f"{100 * row['right'] / row['questions']:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def _shares(row: Row) -> str:
    low, high = row["ttft_interval"]
    return f"{row['ttft_share']:.2f} ({low:.2f}–{high:.2f}) {row['prefill_share']:.2f}"
