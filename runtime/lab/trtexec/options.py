"""Which options trtexec takes, release by release, and how to ask each release for the same measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.models.tensorrt import Version, parse_version


@cache
def option_tables() -> dict[Version, frozenset[str]]:
    """Return version -> names of options, from ``options.json`` (see :mod:`.generate_options`)."""
    data = json.loads(Path(__file__).with_name("options.json").read_text(encoding="utf-8"))
    return {parse_version(name): frozenset(entry["options"]) for name, entry in data["versions"].items()}


def known_options(version: str) -> frozenset[str]:
    """Return the options of the newest tabulated release that is not newer than ``version``.

    Raises:
        UserError: not a version, or one before the first table.
    """
    tables, asked = option_tables(), parse_version(version)
    older = [known for known in tables if known <= asked]
    if not older:
        first = min(tables)
        raise UserError(
            f"TensorRT {version} is older than trtexec's oldest known options, those of {first[0]}.{first[1]}: use "
            "that version or a newer one.",
            code="tensorrt-too-old",
        )
    return tables[max(older)]


def unknown_options(version: str, arguments: Iterable[str]) -> list[str]:
    """Return the options among ``arguments`` that trtexec of this version does not take."""
    known = known_options(version)
    return [name for name in (argument.split("=")[0] for argument in arguments) if name not in known]


def plugin_options(library: Path) -> list[str]:
    """Return the options that make trtexec know the plugin, to build and to run an engine.

    ``--dynamicPlugins`` and not ``--staticPlugins``: the former asks TensorRT's registry to load the library, the
    latter only opens it and counts on its constructors to register something, which a library that links no
    TensorRT does not do.
    """
    return [f"--dynamicPlugins={library}"]


def build_options(version: str) -> list[str]:
    """Return what makes an engine the one that ``python -m runtime build`` makes: types from the graph, no TF32."""
    typed = ["--stronglyTyped"] if parse_version(version)[0] == 10 else []
    return [*typed, "--noTF32", "--profilingVerbosity=detailed"]


def attention_options(version: str) -> list[str]:
    """Return what lets attention take several kernels, as ``python -m runtime build`` does, where it is an option."""
    name = "--decomposableAttentions"
    return [f"{name}=*"] if name in known_options(version) else []


def measure_options(version: str, *, cuda_graph: bool) -> list[str]:
    """Return what decides what is measured, the same for every version.

    Inputs lie on the device, the host spins while it waits, layers are timed in a run of their own, and the work is
    one CUDA graph or is not. In version 10 each of these is an option; in 11 all of them are the default, the old
    options are deprecated, and only what differs has one.
    """
    if parse_version(version)[0] == 10:
        options = ["--noDataTransfers", "--useSpinWait", "--separateProfileRun"]
        return [*options, "--useCudaGraph"] if cuda_graph else options
    return [] if cuda_graph else ["--noCudaGraph"]
