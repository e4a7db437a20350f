"""``python -m runtime build``: the graphs of a bundle become engines of this device, all of them or none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from divprune_edge.errors import UserError
from divprune_edge.models.profiles import VISION, check_slots, is_language, make_limits
from divprune_edge.models.tensorrt import EDITIONS
from divprune_edge.plugins.loader import Library, find_library
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import edition, store
from divprune_edge.runtime.engines.fingerprint import Facts, digest, fingerprint
from divprune_edge.runtime.engines.graphs import BuildJob, Graph, chosen_selectors, facts_of, graphs_of
from divprune_edge.runtime.engines.memory import check_build_memory, check_disk, graph_bytes
from divprune_edge.runtime.engines.progress import BuildProgress
from divprune_edge.runtime.engines.target import check_dialect, check_version, facts_to_build_for


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        selector: ids or names with commas between them, ``all``, ``none``; None is the bundle's default.
        target: name of the device that this is supposed to be, or that engines are built for ahead of time.
        max_prompt: longest piece of a prompt fed at once, in tokens.
        workspace: most bytes that a tactic may take.
        optimization_level: TensorRT's, 0 to 5.
        force: build anew what is there.
        verbose: show what TensorRT says.
        slots: most sequences that are decoded together.
        images: most images of a prompt.
    """

    selector: str | None = None
    target: str | None = None
    max_prompt: int | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    force: bool = False
    verbose: bool = False
    slots: int = 1
    images: int = 1


@dataclass(frozen=True)
class Built:
    """The folder of the engines, what they are, and which of them were there before."""

    folder: Path
    info: store.EnginesInfo
    reused: tuple[str, ...]


def build_engines(bundle: Bundle, options: Options, report: BuildProgress) -> Built:
    """Build the engines of a bundle: on the device that runs them, or ahead of time where the target's edition can.

    Args:
        bundle: an opened bundle with a language model in dialect ``static`` or ``decomposed``.
        options: what to build, and how.
        report: is told how far it is.

    Raises:
        UserError: bundle, target and device do not fit together, something is missing, there is too little disk
            or memory, or the engines are there already.
        DivpruneError: TensorRT cannot build an engine.
    """
    manifest = bundle.manifest
    check_dialect(manifest, bundle.path)
    selectors = chosen_selectors(bundle, options.selector)
    limits = make_limits(manifest, selectors, options.max_prompt, options.slots, options.images)
    for group in manifest.language_model.groups:
        check_slots(manifest.language_model, group.capacity, options.slots)
    device = facts_to_build_for(manifest, bundle.path, options.target)
    edition.use(device.edition)
    check_version(manifest, bundle.path, device.tensorrt, device.edition)
    graphs = graphs_of(bundle, selectors, limits, device.tensorrt, device.edition)
    plugin = find_library() if any(graph.plugin for graph in graphs) else None
    facts = facts_of(bundle, graphs, limits, device, plugin)
    place = bundle.path / store.FOLDER / fingerprint(facts)
    if place.exists() and not options.force:
        raise UserError(
            f"'{place}' holds these engines already: use them, or build them again with --force.",
            code="engines-exist",
        )
    recipes = {graph.name: _recipe(graph, facts, options) for graph in graphs}
    there = {} if options.force else _find_plans(bundle.path, recipes)
    missing = [graph for graph in graphs if graph.name not in there]
    shared = bundle.path / store.FOLDER / store.timing_cache(facts)
    sizes = [graph_bytes(manifest, graph.file, graph.data) for graph in missing]
    check_disk(bundle.path, sizes)
    if sizes:
        check_build_memory(sizes, options.workspace, device)
        _prepare(bundle, missing, plugin, options, facts)
    with store.partial_folder(bundle.path) as partial:
        plans = {}
        for at, graph in enumerate(graphs, start=1):
            recipe = recipes[graph.name]
            report.begin(graph.name, at, len(graphs))
            if graph.name in there:
                plan = _reuse(there[graph.name], graph.name, partial)
            else:
                plan = _build(bundle, graph, recipe, options, facts, partial, shared, report)
            report.done(graph.name, plan.seconds, plan.size, reused=graph.name in there)
            plans[graph.name] = plan
        asked = store.BuildOptions(
            target=options.target,
            selector=options.selector,
            max_prompt=options.max_prompt,
            slots=options.slots if options.slots > 1 else None,
            images=options.images if options.images > 1 else None,
            workspace=options.workspace,
            optimization_level=options.optimization_level,
        )
        info = store.EnginesInfo(facts=facts, asked=asked, plans=plans)
        return Built(store.publish(partial, info), info, tuple(there))


_BUILDER = 3
"""Counts changes of :mod:`~divprune_edge.runtime.engines.compile` that make other plans of the same graph."""


def _recipe(graph: Graph, facts: Facts, options: Options) -> str:
    """Return a digest of all that a plan follows from, the builder's options included."""
    shapes = [{name: shapes.model_dump() for name, shapes in profile.items()} for profile in graph.profiles]
    parts = (
        _BUILDER,
        facts.onnx[graph.name],
        facts.edition,
        facts.tensorrt,
        facts.cuda,
        facts.sms,
        facts.plugin if graph.plugin else None,
        shapes,
        options.workspace,
        options.optimization_level,
    )
    return digest(repr(parts))


def _find_plans(bundle: Path, recipes: dict[str, str]) -> dict[str, store.Stored]:
    """Return where plans of these recipes are already, by name of the engine; broken ones do not count."""
    found = {}
    for folder in (bundle / store.FOLDER).glob("[0-9a-f]*"):
        with suppress(UserError):
            stored = store.Stored(folder, store.read_record(folder))
            for name, recipe in recipes.items():
                plan = stored.info.plans.get(name)
                if plan is not None and plan.recipe == recipe and _is_whole(stored, name):
                    found[name] = stored
    return found


def _is_whole(stored: store.Stored, name: str) -> bool:
    try:
        store.map_plan(stored, name).close()
    except UserError:
        return False
    return True


def _prepare(
    bundle: Bundle, graphs: Sequence[Graph], plugin: Library | None, options: Options, facts: Facts
) -> None:
    """Find out what TensorRT cannot build while that is cheap: the plugin, and the selectors' nodes."""
    compiler = _compiler()
    if plugin is not None:
        compiler.register_plugin(plugin)
    for graph in graphs:
        if graph.name != VISION and not is_language(graph.name):
            compiler.check_graph(_job(bundle, graph, options, facts))


def _build(
    bundle: Bundle,
    graph: Graph,
    recipe: str,
    options: Options,
    facts: Facts,
    partial: Path,
    shared: Path,
    report: BuildProgress,
) -> store.PlanInfo:
    cache = partial / store.TIMING_CACHE
    if shared.is_file() and not cache.is_file():
        shutil.copyfile(shared, cache)
    path, layers = _files(partial, graph.name)
    start = time.monotonic()
    described = _compiler().compile_engine(
        _job(bundle, graph, options, facts), path, cache, report, verbose=options.verbose
    )
    seconds = time.monotonic() - start
    if described is not None:
        layers.write_text(described.layers, encoding="utf-8")
    size, sha256 = store.plan_digest(path)
    if cache.is_file():
        # After each engine, so that a build which is interrupted later has not measured for nothing.
        copy = cache.with_name("copied")
        shutil.copyfile(cache, copy)
        copy.replace(shared)
    return store.PlanInfo(
        file=path.name,
        layers=None if described is None else layers.name,
        size=size,
        sha256=sha256,
        graph=graph.file,
        recipe=recipe,
        profiles=graph.profiles,
        device_memory=() if described is None else described.device_memory,
        plugin=graph.plugin,
        seconds=round(seconds, 3),
    )


def _reuse(stored: store.Stored, name: str, partial: Path) -> store.PlanInfo:
    """Take over a plan of another folder, without a second copy where the disk allows that."""
    plan = stored.info.plans[name]
    for source, target in zip((plan.file, plan.layers), _files(partial, name), strict=True):
        if source is None:
            continue
        try:
            os.link(stored.folder / source, target)
        except OSError:
            shutil.copyfile(stored.folder / source, target)
    path, layers = _files(partial, name)
    return plan.model_copy(update={"file": path.name, "layers": plan.layers and layers.name})


def _files(partial: Path, name: str) -> tuple[Path, Path]:
    folder = partial / store.PLANS
    return folder / f"{name}.plan", folder / f"{name}.layers.json"


def _job(bundle: Bundle, graph: Graph, options: Options, facts: Facts) -> BuildJob:
    return BuildJob(
        graph.name,
        bundle.file(graph.file),
        graph.profiles,
        graph.plugin,
        options.workspace,
        options.optimization_level,
        tuple(bundle.file(name) for name in graph.data),
        facts.sms if EDITIONS[facts.edition].ahead_of_time else (),
    )


def _compiler() -> ModuleType:
    """Return the module that calls TensorRT, on first use: nothing else needs Polygraphy."""
    try:
        from divprune_edge.runtime.engines import compile as compiler
    except ImportError as error:
        raise UserError(
            f"Polygraphy, which builds engines, cannot be loaded ({error}): 'pip install polygraphy'.",
            code="polygraphy-missing",
        ) from error
    return compiler
