"""From a bundle to the trtexec commands for it: graphs, inputs, lines, and a record of what they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.manifest import GraphInfo, SelectorInfo
from divprune_edge.models.profiles import (
    ASSEMBLE,
    PREFILL,
    VISION,
    assemble_profiles,
    is_language,
    language_engines,
    language_profiles,
    make_limits,
    selector_profiles,
    vision_profiles,
)
from divprune_edge.models.tensorrt import needs_stripped
from divprune_edge.plugins.loader import BUILD, default_path, find_library
from divprune_edge.processing.sources import Video
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.graphs import Graph
from divprune_edge.runtime.engines.target import check_dialect, check_version
from divprune_edge.runtime.lab.profiling.measure import DECODE, counted_tiles
from divprune_edge.runtime.lab.profiling.roofline import StageCost, costs
from divprune_edge.runtime.lab.trtexec.inputs import Inputs, write_inputs
from divprune_edge.runtime.lab.trtexec.lines import Files, Line, Stage, build_line, check_folder, measure_line
from divprune_edge.runtime.lab.trtexec.options import known_options
from divprune_edge.runtime.lab.trtexec.program import choose_version
from divprune_edge.runtime.lab.trtexec.stages import RunInfo, StageInfo, write_run

STAGES = ("vision", "selector", "language", "all")
_FOLDER = "trtexec"
SEVERAL_RUNS = "The vision encoder runs {} times for this; one run of it is measured."
CHOSEN_BETWEEN = (
    "The language model is a chain of {} graphs (schedule '{}'). What is handed on between them is random numbers, "
    "which changes what is chosen but not what it costs; the choice itself, on the host, is not measured: see 'python "
    "-m runtime profile'."
)
ALL_KEPT = "The image has no more visual tokens than the selector keeps, so the selection is not measured."


@dataclass(frozen=True)
class TrtexecJob:
    """The commands in order, for one version of TensorRT; their inputs are written."""

    version: str
    files: Files
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def make_job(
    path: Path,
    tensorrt: str | None,
    program: Path | None,
    selector: str | None,
    stage: str,
    max_prompt: int | None,
    media: Path | Video,
    question: str,
    output: Path | None,
    library: Path | None,
) -> TrtexecJob:
    """Write the inputs and return the commands.

    Args:
        path: of the bundle.
        tensorrt: version; None asks the program, the installation, and the bundle's target, in this order.
        program: the trtexec that will run them, if one will.
        selector: of the bundle; None is its default.
        stage: one of :data:`STAGES`.
        max_prompt: longest piece of a prompt, as for ``python -m runtime build``.
        media: the image or clip.
        question: of the prompt.
        output: folder for inputs, engines and measurements.
        library: folder of the plugin; None is the package's, which need not be built yet to print the lines.

    Raises:
        UserError: something does not fit together or is missing.
    """
    if stage not in STAGES:
        raise UserError(
            f"There is no stage '{stage}'{did_you_mean(stage, STAGES)}: choose among {', '.join(STAGES)}.",
            code="stage-unknown",
        )
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    version = choose_version(tensorrt, manifest, program)
    known_options(version)
    chosen = bundle.selector(selector)
    if stage == "selector" and chosen is None:
        raise UserError(
            "Without pruning there is no selector to measure: name one with --selector.",
            code="stage-without-selector",
        )
    if stage in ("language", "all"):
        check_dialect(manifest, path)
        check_version(manifest, path, version)
    files = Files((output or path / _FOLDER).absolute())
    check_folder(files.folder)
    graphs = _graphs(bundle, path, chosen, stage, max_prompt, version)
    inputs = Inputs(bundle, chosen, media, question)
    notes = []
    plugin = default_path()
    if any(graph.plugin for graph, _ in graphs):
        if program is None and library is None and not plugin.exists():
            notes.append(
                f"The plugin library that the lines name is not there yet: build it with '{BUILD}' first."
            )
        else:
            plugin = find_library(library).path.absolute()
    lines: list[Line] = []
    stages: list[Stage] = []
    for graph, info in graphs:
        mine: tuple[Stage, ...]
        if info is manifest.vision_encoder:
            mine = (inputs.vision(),)
            notes += [SEVERAL_RUNS.format(inputs.runs)] if inputs.runs > 1 else []
        elif info is manifest.assemble:
            mine = (inputs.assemble(),)
        elif is_language(graph.name):
            mine = inputs.language(graph.name)
            _check_prompt(mine[0], graph)
        else:
            one = inputs.select()
            mine = () if one is None else (one,)
            notes += [ALL_KEPT] if one is None else []
        onnx = path.absolute() / graph.file
        lines.append(build_line(version, graph, onnx, info.inputs, files, plugin))
        lines += [measure_line(version, graph, one, info.inputs, files, plugin) for one in mine]
        stages += mine
    schedule = manifest.language_model.schedule
    if schedule is not None and stage in ("language", "all"):
        notes.append(CHOSEN_BETWEEN.format(len(manifest.language_model.graphs), schedule.method))
    notes += [inputs.note] if inputs.note else []
    write_inputs(stages, files)
    _record(bundle, chosen, version, stages, files, inputs.visual_tokens, tuple(notes))
    return TrtexecJob(version, files, tuple(lines), tuple(notes))


def _graphs(
    bundle: Bundle, path: Path, chosen: SelectorInfo | None, stage: str, max_prompt: int | None, version: str
) -> list[tuple[Graph, GraphInfo]]:
    """Return the graphs of the stages with the profiles that ``python -m runtime build`` gives their engines."""
    manifest = bundle.manifest
    vision, language = manifest.vision_encoder, manifest.language_model
    found: list[tuple[Graph, GraphInfo]] = []
    if stage in ("vision", "all"):
        profiles = vision_profiles(manifest)
        found.append((Graph(VISION, vision.file, vision.data, profiles, plugin=False), vision))
        if (rows := manifest.assemble) is not None:
            found.append(
                (Graph(ASSEMBLE, rows.file, rows.data, assemble_profiles(manifest), plugin=False), rows)
            )
    if stage in ("selector", "all") and chosen is not None:
        file = chosen.stripped if chosen.stripped is not None and needs_stripped(version) else chosen.file
        plugin = chosen.stripped is not None
        graph = Graph(chosen.id, file, chosen.data, selector_profiles(chosen), plugin=plugin)
        found.append((graph, chosen))
    if stage in ("language", "all"):
        limits = make_limits(manifest, [chosen], max_prompt)
        for name, one, group in zip(
            language_engines(language), language.graphs, language.groups, strict=True
        ):
            both = language_profiles(one, limits, group)
            found.append((Graph(name, one.file, one.data, both, plugin=False), one))
    return found


def _check_prompt(prefill: Stage, graph: Graph) -> None:
    """Check that the prompt, which trtexec gets in one piece, is within the engine's shapes.

    Behind the first graph of a chain it is no longer.

    Raises:
        UserError: it is longer.
    """
    if "input_ids" not in prefill.inputs:
        return
    length, most = prefill.inputs["input_ids"].shape[1], graph.profiles[PREFILL]["input_ids"].max[1]
    if length > most:
        raise UserError(
            f"The prompt has {length} tokens, but the engine is for up to {most} at once: ask a shorter --question, or "
            f"give --max-prompt {length}.",
            code="prompt-too-long",
        )


def _record(
    bundle: Bundle,
    chosen: SelectorInfo | None,
    version: str,
    stages: list[Stage],
    files: Files,
    visual_tokens: int,
    notes: tuple[str, ...],
) -> None:
    manifest = bundle.manifest
    ids = (one.inputs.get("input_ids") for one in stages if one.profile == PREFILL)
    prompt = next((one.shape[1] for one in ids if one is not None), None)
    seen = (counted_tiles(manifest, one.inputs["pixels"]) for one in stages if one.name == "vision")
    stated = costs(bundle, chosen, prompt or 1, 1, next(seen, 1))

    def described(one: Stage) -> StageInfo:
        cost: StageCost | None = stated.get(one.name.replace("decode", DECODE))
        if cost is None:
            return StageInfo(name=one.name, engine=one.engine)
        return StageInfo(
            name=one.name, engine=one.engine, flops=cost.flops, bytes=cost.bytes, precision=cost.precision
        )

    info = RunInfo(
        bundle=bundle.path.name,
        tensorrt=version,
        target=manifest.target,
        precision=manifest.precision,
        visual_tokens=visual_tokens,
        prompt_tokens=prompt,
        stages=tuple(described(one) for one in stages),
        notes=notes,
    )
    write_run(info, files.folder)
