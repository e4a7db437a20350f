"""Finding the engines of a bundle for this device, and proving that they are what they say, before any is loaded.

A plan is code: TensorRT executes what it deserialises, and does not notice that a file was tampered with. So nothing
here, and nothing that fails here, hands a byte of a plan to TensorRT.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import SelectorInfo
from divprune_edge.models.profiles import ASSEMBLE, VISION, EngineLimits, is_language, language_engines
from divprune_edge.models.targets import find_target
from divprune_edge.models.tensorrt import TENSORRT, Edition
from divprune_edge.plugins.loader import BUILD, Library, default_path, find_library
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.facts import DeviceFacts, device_facts
from divprune_edge.runtime.engines.fingerprint import differences
from divprune_edge.runtime.engines.graphs import Graph, graphs_of
from divprune_edge.runtime.engines.memory import check_run_memory
from divprune_edge.runtime.engines.store import (
    FOLDER,
    PlanInfo,
    Stored,
    map_plan,
    read_stores,
    rebuild_command,
)
from divprune_edge.runtime.engines.target import check_backend, check_dialect

_log = logging.getLogger("divprune_edge")
_SHARED = {VISION, ASSEMBLE}
"""Engines that serve every selector, beside those of the language model."""


@dataclass(frozen=True)
class Engines:
    """Checked engines for one way of asking.

    Attributes:
        folder: where they lie.
        device: facts of this device.
        limits: shapes that the language model's engine takes.
        plans: engine -> its bytes, mapped: ``vision_encoder``, ``assemble`` where images have tiles,
            ``language_model``, and the selector's id if there is one. Those that were opened before are left out.
        info: engine -> what is known of it.
        library: the plugin library to register before a plan is loaded, or to call between the engines; None where none
            needs it.
        kernel: the selector is no plan but the library's kernel, called between the engines.
    """

    folder: Path
    device: DeviceFacts
    limits: EngineLimits
    plans: Mapping[str, mmap]
    info: Mapping[str, PlanInfo]
    library: Library | None
    kernel: bool = False


def open_engines(
    bundle: Bundle,
    selector: SelectorInfo | None,
    before: Engines | None = None,
    edition: Edition = TENSORRT,
) -> Engines:
    """Find and check the engines of a bundle for this device.

    Args:
        bundle: an opened bundle.
        selector: what prunes; None for no pruning.
        before: engines that are loaded already: only a selector's comes on top, and from the same build.
        edition: of TensorRT. Where it has no plugins, a selector that has one elsewhere is our kernel, if that is
            built, else its engine.

    Raises:
        UserError: there are none, they were built for something else, one is damaged or was changed, the plugin
            is missing, or there is too little memory. Nothing was deserialised.
    """
    check_dialect(bundle.manifest, bundle.path)
    check_backend(bundle.manifest, bundle.path, edition)
    everything, problems = read_stores(bundle.path)
    stores = [stored for stored in everything if stored.info.facts.edition == edition.name]
    if problems and not stores:
        raise problems[0]
    if not stores:
        raise UserError(
            f"'{bundle.path}' has no engines{'' if edition is TENSORRT else f' for {edition.title}'}: build them"
            f"{'' if edition.ahead_of_time else ' on this device'} with '{_command(bundle, selector, edition)}'.",
            code="engines-missing",
        )
    device = device_facts(edition)
    try:
        stored = _choose(bundle, selector, stores, device, before)
    except UserError as error:
        # A folder that cannot be read may be the one that would have fitted.
        raise (problems or [error])[0] from None
    called = _called_kernel(selector, edition)
    seeing = [VISION, *([ASSEMBLE] if bundle.manifest.assemble else [])]
    language = language_engines(bundle.manifest.language_model)
    names = [*([] if before else [*seeing, *language]), *([selector.id] if selector and not called else [])]
    info = {name: stored.info.plans[name] for name in names}
    found = called
    if any(plan.plugin for plan in info.values()):
        found = _check_plugin(bundle, selector, stored)
    if before is None:
        longest = stored.info.facts.limits.max_prompt
        check_run_memory(info.values(), bundle.manifest.language_model, longest, device)
    plans = {name: map_plan(stored, name) for name in names}
    return Engines(stored.folder, device, stored.info.facts.limits, plans, info, found, called is not None)


def _called_kernel(selector: SelectorInfo | None, edition: Edition) -> Library | None:
    """Return the library whose kernel is called in a selector's place, None where its engine is run."""
    if edition.plugins or selector is None or selector.stripped is None:
        return None
    if not default_path().is_file():
        _log.warning(
            "The selection runs as a loop of %s, which is many times slower than our kernel: build that with '%s'.",
            edition.title,
            BUILD,
        )
        return None
    return find_library()


def _choose(
    bundle: Bundle,
    selector: SelectorInfo | None,
    stores: list[Stored],
    device: DeviceFacts,
    before: Engines | None,
) -> Stored:
    """Return the newest engines that fit; where none do, say what those that come closest lack."""
    rated = [(_misfits(bundle, selector, stored, device), stored) for stored in stores]
    fitting = [stored for misfits, stored in rated if not misfits]
    if before is not None:
        # One language model serves all selectors of a pipeline: theirs must be the one that is loaded.
        together = [stored for stored in fitting if _share_engines(stored, before)]
        if fitting and not together:
            raise UserError(
                f"The engines in '{fitting[0].folder}' were built apart from those in '{before.folder}', which are "
                f"loaded: build them together with '{rebuild_command(bundle.path)} --selector NAME,NAME'.",
                code="engines-built-apart",
            )
        fitting = together
    if fitting:
        return fitting[0]
    misfits, _ = min(rated, key=lambda one: len(one[0]))
    raise UserError(
        f"The engines in '{bundle.path / FOLDER}' {misfits[0]}: {_remedy(bundle, selector, device)}.",
        code="engines-unfit",
    )


def _share_engines(stored: Stored, before: Engines) -> bool:
    """Whether two builds have the same engines but for their selectors, as where the later took over the earlier's."""
    return all(
        stored.info.plans[name].sha256 == before.info[name].sha256
        for name in before.info
        if name in _SHARED or is_language(name)
    )


def _misfits(bundle: Bundle, selector: SelectorInfo | None, stored: Stored, device: DeviceFacts) -> list[str]:
    """Return why engines do not serve this device and this selector; an empty list if they do."""
    built = stored.info.facts
    graphs: list[Graph] = graphs_of(bundle, [selector], built.limits, device.tensorrt, device.edition)
    now = {graph.name: graph.digest(bundle.manifest) for graph in graphs}
    found = differences(built, device, now)
    missing = [name for name in now if name not in built.onnx]
    if missing:
        others = {name for name in built.onnx if name not in _SHARED and not is_language(name)}
        there = ", ".join(sorted(others)) or "no selector"
        found.append(f"were built with {there}, but not with '{missing[0]}'")
    kept, most = bundle.manifest.visual_tokens(selector), built.limits.kept[-1]
    if not missing and kept > most:
        found.append(f"were built for up to {most} visual tokens, but {kept} are asked for")
    return found


def _check_plugin(bundle: Bundle, selector: SelectorInfo | None, stored: Stored) -> Library:
    found = find_library()
    before = stored.info.facts.plugin or ""
    if found.record.sha256 != before:
        raise UserError(
            f"The engines in '{stored.folder}' were built with another plugin library (sha256 {before[:12]}…) than "
            f"'{found.path}' (sha256 {found.record.sha256[:12]}…): build them again with "
            f"'{_command(bundle, selector)}'.",
            code="engines-of-other-plugin",
        )
    return found


def _remedy(bundle: Bundle, selector: SelectorInfo | None, device: DeviceFacts) -> str:
    target = bundle.manifest.target and find_target(bundle.manifest.target)
    if target and device.edition.ahead_of_time and not set(device.sms) <= set(target.sms):
        return (
            f"the bundle was made for {target.title}, so export for this device with "
            f"'{bundle.manifest.source.export_command} --target NAME'"
        )
    return f"build them for this device with '{_command(bundle, selector, device.edition)}'"


def _command(bundle: Bundle, selector: SelectorInfo | None, edition: Edition = TENSORRT) -> str:
    """Return the command that builds what was asked for."""
    asked = selector.id if selector else "none"
    more = "" if asked == bundle.manifest.default_selector else f" --selector {asked}"
    if edition.ahead_of_time and bundle.manifest.target is None:
        more += " --target rtx"
    return rebuild_command(bundle.path) + more
