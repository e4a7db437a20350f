"""What trtexec measured, stage by stage: GPU time beside its roofline, and the layers that it is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.models.targets import find_target
from divprune_edge.runtime.lab.charts import stacked_bars
from divprune_edge.runtime.lab.html import page
from divprune_edge.runtime.lab.profiling import roofline
from divprune_edge.runtime.lab.profiling.page import STYLE, notes_html, table_html
from divprune_edge.runtime.lab.profiling.roofline import Bound, Machine, StageCost, bound, machine_of
from divprune_edge.runtime.lab.profiling.samples import Summary, summarise
from divprune_edge.runtime.lab.profiling.tables import Table, shown
from divprune_edge.runtime.lab.trtexec.layers import Group, group_layers
from divprune_edge.runtime.lab.trtexec.lines import Files
from divprune_edge.runtime.lab.trtexec.records import by_name, read_layers, read_profile, read_times
from divprune_edge.runtime.lab.trtexec.stages import StageInfo, read_run

MEANING = (
    "Times are trtexec's GPU compute time of one inference, inputs on the device: no preprocessing, no sampling, and "
    "nothing between the stages. Layer times are medians of a run of their own."
)
_SHOWN = 16
_BARS = 10


@dataclass(frozen=True)
class EngineReport:
    """One stage in milliseconds: GPU compute, time to queue on the host, and the layers' medians summed by module."""

    stage: str
    engine: str
    compute: Summary
    enqueue: Summary
    latency: Summary
    bound: Bound | None
    ratio: float | None
    layers: int
    layer_sum: float
    groups: tuple[Group, ...]

    @property
    def difference(self) -> float:
        """Median of the whole inference less the sum of its layers."""
        return self.compute.median - self.layer_sum

    @property
    def reconciliation(self) -> str:
        """One line on how the layers and the whole agree, and what the difference can consist of."""
        share = self.difference / self.compute.median if self.compute.median else 0.0
        start = (
            f"{self.stage}: {self.layers} layers sum to {shown(self.layer_sum)} ms, the inference takes "
            f"{shown(self.compute.median)} ms: {self.difference:+.3f} ms ({100 * share:+.1f} %)"
        )
        if abs(share) < 0.02:
            return f"{start}, within the noise of two runs."
        if share < 0:
            return (
                f"{start}: timing each layer keeps them from overlapping (auxiliary streams, one CUDA graph) and adds "
                "an event to each, which is most of a short layer's time."
            )
        if self.enqueue.median > 0.8 * self.compute.median:
            return (
                f"{start}: the host takes {shown(self.enqueue.median)} ms to queue the work, so the GPU waits between "
                "kernels; a CUDA graph would close the gaps."
            )
        return f"{start}: launches and gaps between kernels, and copies that belong to no layer."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {
            "stage": self.stage,
            "engine": self.engine,
            "compute_ms": self.compute.to_dict(),
            "enqueue_ms": self.enqueue.to_dict(),
            "latency_ms": self.latency.to_dict(),
            "roofline": None if self.bound is None else {"ms": round(self.bound.ms, 6), "by": self.bound.by},
            "ratio": self.ratio,
            "layers": self.layers,
            "layer_sum_ms": round(self.layer_sum, 6),
            "difference_ms": round(self.difference, 6),
            "reconciliation": self.reconciliation,
            "modules": [asdict(group) for group in self.groups],
        }


@dataclass(frozen=True)
class TrtexecReport:
    """All stages of one folder. ``about`` are facts by name."""

    about: Mapping[str, str]
    engines: tuple[EngineReport, ...]
    notes: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """How layers and whole agree, stage by stage."""
        return [engine.reconciliation for engine in self.engines]

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        data = {
            "about": dict(self.about),
            "engines": [engine.to_dict() for engine in self.engines],
            "notes": list(self.notes),
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def tables(self) -> list[Table]:
        """Return one table of stages, and one of modules for each stage."""
        return [self._stages(), *(_modules(engine) for engine in self.engines)]

    def to_html(self) -> str:
        """Return one self-contained page."""
        bars = {
            engine.stage: {group.module: group.ms for group in _folded(engine.groups, _BARS)}
            for engine in self.engines
            if engine.layer_sum > 0
        }
        charts = [
            stacked_bars(
                f"{stage}: layers by module", "ms", {name: {"ms": ms} for name, ms in groups.items()}
            )
            for stage, groups in bars.items()
        ]
        facts = ", ".join(f"{key} {value}" for key, value in self.about.items())
        body = [
            f"<p>{escape(facts)}</p>",
            *(f'<p class="verdict">{escape(sentence)}</p>' for sentence in self.sentences),
            f'<div class="charts">{"".join(charts)}</div>',
            *(table_html(table) for table in self.tables()),
            notes_html(self.notes),
        ]
        return page(f"trtexec on {self.about['bundle']}", "\n".join(body), STYLE)

    def _stages(self) -> Table:
        rows = []
        for engine in self.engines:
            least = (shown(engine.bound.ms), engine.bound.by) if engine.bound else ("–", "–")
            times = (engine.compute.median, engine.compute.p90, engine.compute.p99, engine.enqueue.median)
            ratio = "–" if engine.ratio is None else f"{engine.ratio:.1f}×"
            rows.append((engine.stage, *(shown(value) for value in times), *least, ratio))
        heads = ("ms", "median", "p90", "p99", "enqueue", "roofline", "set by", "ratio")
        return Table("Stages on the GPU", heads, tuple(rows))


def read_report(folder: Path) -> TrtexecReport:
    """Return the report of a folder that ``python -m runtime trtexec BUNDLE --output`` and its commands wrote.

    Raises:
        UserError: a file is missing or malformed.
    """
    run = read_run(folder)
    machine = machine_of(find_target(run.target)) if run.target is not None else None
    engines = tuple(_engine(stage, Files(folder), machine) for stage in run.stages)
    if not engines:
        raise UserError(
            f"'{folder}' names no stages: run the commands again with --output.", code="measurements-invalid"
        )
    about = {
        "bundle": run.bundle,
        "precision": run.precision,
        "TensorRT": run.tensorrt,
        "visual tokens": str(run.visual_tokens),
    }
    if run.prompt_tokens is not None:
        about["prompt tokens"] = str(run.prompt_tokens)
    notes = [*run.notes, MEANING]
    if machine is not None:
        notes += [f"Rooflines of {machine.title}: {machine.source}.", roofline.MEANING]
    return TrtexecReport(about, engines, tuple(notes))


def _engine(stage: StageInfo, files: Files, machine: Machine | None) -> EngineReport:
    runs = read_times(files.times(stage.name))
    profile = read_profile(files.profile(stage.name))
    infos = by_name(read_layers(files.layers(stage.name)))
    compute = summarise([run.compute for run in runs])
    least = None
    if machine and stage.flops is not None and stage.bytes is not None and stage.precision is not None:
        least = bound(StageCost(stage.flops, stage.bytes, stage.precision), machine)
    return EngineReport(
        stage=stage.name,
        engine=stage.engine,
        compute=compute,
        enqueue=summarise([run.enqueue for run in runs]),
        latency=summarise([run.latency for run in runs]),
        bound=least,
        ratio=round(compute.median / least.ms, 3) if least else None,
        layers=len(profile.layers),
        layer_sum=profile.median_sum,
        groups=tuple(group_layers(profile.layers, infos)),
    )


def _modules(engine: EngineReport) -> Table:
    rows = []
    for group in _folded(engine.groups, _SHOWN):
        share = 100 * group.ms / engine.layer_sum if engine.layer_sum else 0.0
        rows.append((group.module, str(group.layers), shown(group.ms), f"{share:.1f} %"))
    return Table(f"{engine.stage}: layers by module", ("module", "layers", "ms", "share"), tuple(rows))


def _folded(groups: tuple[Group, ...], most: int) -> list[Group]:
    """Return at most ``most`` groups, the fast ones as one."""
    if len(groups) <= most:
        return list(groups)
    rest = groups[most - 1 :]
    name = f"({len(rest)} more)"
    return [*groups[: most - 1], Group(name, sum(g.layers for g in rest), sum(g.ms for g in rest))]
