"""Which graphs of a bundle become engines, from which files, and what these engines depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import Manifest, SelectorInfo
from divprune_edge.models.profiles import (
    ASSEMBLE,
    VISION,
    EngineLimits,
    Profile,
    assemble_profiles,
    language_engines,
    language_profiles,
    selector_profiles,
    vision_profiles,
)
from divprune_edge.models.tensorrt import TENSORRT, Edition, needs_stripped
from divprune_edge.plugins.loader import Library
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.facts import DeviceFacts
from divprune_edge.runtime.engines.fingerprint import Facts, graph_digest
from divprune_edge.runtime.engines.store import plain_name

ALL = "all"


@dataclass(frozen=True)
class Graph:
    """A graph that becomes an engine: file and external data in the bundle, profiles, and whether it has the plugin."""

    name: str
    file: str
    data: tuple[str, ...]
    profiles: tuple[Profile, ...]
    plugin: bool

    def digest(self, manifest: Manifest) -> str:
        """Return one sha256 over the graph's files."""
        return graph_digest(manifest, self.file, self.data)


@dataclass(frozen=True)
class BuildJob:
    """One engine to build.

    Attributes:
        name: of the engine.
        graph: the ONNX file; its external data lies beside it.
        profiles: optimisation profiles, in their order.
        plugin: a node of the graph is the plugin's.
        workspace: most bytes that a tactic may take; None leaves it to TensorRT.
        optimization_level: 0 to 5; None leaves it to TensorRT.
        data: the graph's external data.
        sms: GPUs to build for ahead of time; empty for the one that is here.
    """

    name: str
    graph: Path
    profiles: tuple[Profile, ...]
    plugin: bool
    workspace: int | None
    optimization_level: int | None
    data: tuple[Path, ...] = ()
    sms: tuple[int, ...] = ()


def chosen_selectors(bundle: Bundle, asked: str | None) -> list[SelectorInfo | None]:
    """Return the selectors to build for, the one to tune for first; None stands for no pruning.

    Raises:
        UserError: the bundle has no such selector.
    """
    if asked is None:
        return [bundle.selector()]
    chosen: list[SelectorInfo | None] = []
    for name in (part.strip() for part in asked.split(",")):
        if name == ALL:
            default = bundle.selector()
            others = [entry for entry in bundle.manifest.selectors if entry != default]
            found: list[SelectorInfo | None] = [*([default] if default else []), *others]
        else:
            found = [bundle.selector(name)]
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def graphs_of(
    bundle: Bundle,
    selectors: Sequence[SelectorInfo | None],
    limits: EngineLimits,
    tensorrt: str,
    edition: Edition = TENSORRT,
) -> list[Graph]:
    """Return the graphs to build for this version of TensorRT, the smallest first: what fails, fails early."""
    manifest = bundle.manifest
    vision, language = manifest.vision_encoder, manifest.language_model
    graphs = [_selector_graph(entry, tensorrt, edition) for entry in selectors if entry is not None]
    if (rows := manifest.assemble) is not None:
        graphs.append(Graph(ASSEMBLE, rows.file, rows.data, assemble_profiles(manifest), plugin=False))
    profiles = vision_profiles(manifest, apart=edition.shares_weights)
    graphs.append(Graph(VISION, vision.file, vision.data, profiles, plugin=False))
    for name, graph, group in zip(language_engines(language), language.graphs, language.groups, strict=True):
        profiles = language_profiles(graph, limits, group, apart=edition.shares_weights)
        graphs.append(Graph(name, graph.file, graph.data, profiles, plugin=False))
    return graphs


def _selector_graph(entry: SelectorInfo, tensorrt: str, edition: Edition) -> Graph:
    try:
        plain_name(entry.id)
    except ValueError as error:
        raise UserError(
            f"Selector {error}, so its engine cannot be stored: export it under another name.",
            code="selector-name-unfit",
        ) from error
    # The exporter writes a stripped file for each graph whose node is the plugin's, and for no other.
    plugin = edition.plugins and entry.stripped is not None
    stripped = entry.stripped if plugin and needs_stripped(tensorrt) else None
    return Graph(entry.id, stripped or entry.file, entry.data, selector_profiles(entry), plugin)


def facts_of(
    bundle: Bundle, graphs: Sequence[Graph], limits: EngineLimits, device: DeviceFacts, plugin: Library | None
) -> Facts:
    """Return what the engines of these graphs depend on here."""
    return Facts(
        onnx={graph.name: graph.digest(bundle.manifest) for graph in graphs},
        edition=device.edition.name,
        tensorrt=device.tensorrt,
        cuda=device.cuda,
        sms=device.sms,
        plugin=plugin.record.sha256 if plugin else None,
        limits=limits,
    )
