"""``python -m export cost``: what a budget saves, by the literature's conventions and from end to end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import UNPRUNED
from divprune_edge.models.budget import budget
from divprune_edge.models.cost import Cost, cost_of, layered_kv_bytes, visual_by_layer
from divprune_edge.models.cost_conventions import (
    F2,
    F3,
    QUESTION_TOKENS,
    SYSTEM_TOKENS,
    Sizes,
    divprune_ratio,
    prefill_flops,
)
from divprune_edge.models.families import FAMILIES, family_named, family_of
from divprune_edge.models.families.family import Spec
from divprune_edge.models.files import CheckpointFiles, Config
from divprune_edge.models.schedules import Schedule, find_method, schedule_of
from divprune_edge.models.schedules.reading import many_rows
from divprune_edge.models.tiles import candidates_of, tiles_of
from divprune_edge.strict_json import is_file

PRESETS: dict[str, Config] = {
    name: config for family in FAMILIES for name, config in family_named(family).presets.items()
}

_console = Console(markup=False, highlight=False, soft_wrap=True)


def show_cost(
    model: str, *, keep: int | None, prune: str | None, text_tokens: int, schedule: str | None = None
) -> None:
    """Print the cost of ``model`` (a preset or a checkpoint folder) with and without pruning.

    With a ``schedule``, a method's name or a file, tokens leave between layers as well; then all tokens enter the first
    one where no budget is given.

    Raises:
        UserError: no such preset, folder or schedule, or a budget out of range.
    """
    if text_tokens < 1:
        raise UserError(
            f"{text_tokens} text tokens were given, expected at least 1.", code="count-out-of-range"
        )
    spec = _spec(model)
    n = candidates_of(spec)
    schedule = None if schedule == UNPRUNED else schedule
    kept = n if schedule is not None and keep is None and prune is None else budget(keep, prune, n)
    cuts = schedule_of(schedule, spec.decoder.layers, kept) if schedule is not None else None
    full, pruned = cost_of(spec, n, text_tokens), cost_of(spec, kept, text_tokens, schedule=cuts)
    tiles = tiles_of(spec)
    of = f", an image of {tiles} tiles" if tiles > 1 else ""
    table = Table(title=f"{model}: {kept} of {n} visual tokens{of}", title_justify="left")
    table.add_column("stage")
    for column in ("all tokens", "pruned", "ratio"):
        table.add_column(column, justify="right")
    scores = [] if cuts is None else ["scores"]
    for name in ("vision", "projector", "selector", "language", *scores):
        _row(table, f"{name}, TFLOP", getattr(full, name), getattr(pruned, name))
    _row(table, "end to end, TFLOP", full.total, pruned.total, style="bold")
    table.add_row(
        "KV cache, MiB", *(f"{c.kv_bytes / 2**20:,.1f}" for c in (full, pruned)), _ratio_kv(full, pruned)
    )
    _console.print(table)
    _console.print(
        f"Counted with {text_tokens} text tokens, two operations per multiply-accumulate, 16-bit cache. "
        f"Ratios by other conventions, decoder alone{', without reading scores' if scores else ''}:"
    )
    for line in conventions(spec, kept, cuts):
        _console.print(f"  {line}")
    if cuts is not None:
        if many_rows(find_method(cuts.method)):
            _console.print(
                f"{cuts.method} writes out attention of many rows, which no fused attention hands out: that takes more "
                "time than its operations say (docs/schedules.md has it measured)."
            )
        _console.print(f"{cuts.method}, layer by layer:")
        for line in by_layer(spec, cuts, text_tokens):
            _console.print(f"  {line}")


def by_layer(spec: Spec, schedule: Schedule, text_tokens: int) -> list[str]:
    """Return one line per group of layers: its visual tokens, and the cache of each of its layers."""
    layers = spec.decoder.layers
    begins = [0, *(cut.before for cut in schedule.cuts), layers]
    return [
        f"layers {first:2}-{end - 1:2}  {keep:5} visual tokens, KV cache "
        f"{layered_kv_bytes(spec.decoder, [keep + text_tokens] * (end - first)) / 2**20:8,.1f} MiB"
        for keep, first, end in zip(schedule.keeps, begins[:-1], begins[1:], strict=True)
    ]


def conventions(spec: Spec, keep: int, schedule: Schedule | None = None) -> list[str]:
    """Return one line per convention of the literature: what a paper would print for this budget."""
    n = candidates_of(spec)
    sizes = Sizes(spec.decoder.hidden, spec.decoder.intermediate, spec.decoder.layers)
    held = (keep,) * sizes.layers if schedule is None else visual_by_layer(schedule, sizes.layers)
    questions = list(QUESTION_TOKENS.values())
    question = divprune_ratio(sizes, n, held, questions)[2]
    system = divprune_ratio(sizes, n, held, questions, SYSTEM_TOKENS)[2]
    visual = prefill_flops(sizes, [(1, m) for m in held], F3) / prefill_flops(sizes, [(sizes.layers, n)], F3)
    return [
        f"{question:7.2%}  f{F2} = 4nd² + 2n²d + 2ndm, visual and question tokens (DivPrune, mean of 11 data sets)",
        f"{system:7.2%}  the same with the {SYSTEM_TOKENS} tokens of the system prompt",
        f"{visual:7.2%}  f{F3} = 4nd² + 2n²d + 3ndm, visual tokens alone (TransPrune, FitPrune, CATP)",
    ]


def _row(table: Table, name: str, full: int, pruned: int, style: str | None = None) -> None:
    ratio = f"{pruned / full:.1%}" if full else ""
    table.add_row(name, f"{full / 1e12:.4f}", f"{pruned / 1e12:.4f}", ratio, style=style)


def _ratio_kv(full: Cost, pruned: Cost) -> str:
    return f"{pruned.kv_bytes / full.kv_bytes:.1%}"


def _spec(model: str) -> Spec:
    if model in PRESETS:
        return _read(PRESETS[model])
    path = Path(model) / "config.json"
    if not is_file(path):
        raise UserError(
            f"'{model}' is no checkpoint folder with a config.json, and no checkpoint of that name is known"
            f"{did_you_mean(model, PRESETS)}: known are {', '.join(PRESETS)}.",
            code="model-unknown",
        )
    return _read(CheckpointFiles(path.parent).required_json(path.name, "says what model this is"))


def _read(config: Config) -> Spec:
    spec: Spec = family_of(config).spec(config)
    return spec
