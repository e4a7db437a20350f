"""What ``install.sh`` must know of the target and the bundle, as shell variables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from divprune_edge.manifest import Manifest
from divprune_edge.models.targets import TARGETS, Target
from divprune_edge.version import __version__

L4T = {"6.2": "36", "7.2": "39"}
"""JetPack -> major version of Jetson Linux (``/etc/nv_tegra_release``): 36.4 and 39.2."""


def shell_facts(manifest: Manifest, target: Target, wheel: str) -> dict[str, str]:
    """Return the variables of ``package.env``.

    Args:
        manifest: of the bundle.
        target: a Jetson.
        wheel: file name of the runtime's wheel.
    """
    assert target.jetpack and target.tensorrt and target.cuda and target.python and target.memory_bytes
    other = sibling(target)
    return {
        "VERSION": __version__,
        "MODEL": manifest.source.model,
        "PRECISION": manifest.precision,
        "TARGET": target.name,
        "TARGET_TITLE": target.title,
        "OTHER_TARGET": other.name if other else "",
        "OTHER_JETPACK": (other.jetpack or "") if other else "",
        "OTHER_L4T": L4T[other.jetpack or ""] if other else "",
        "JETPACK": target.jetpack,
        "L4T": L4T[target.jetpack],
        "TENSORRT": target.tensorrt,
        "CUDA": target.cuda,
        "PYTHON_VERSION": target.python,
        "BUNDLE_TARGET": manifest.target or "",
        "BUNDLE_BYTES": str(sum(info.size for info in manifest.files.values())),
        "LARGEST_GRAPH_BYTES": str(_largest_graph(manifest)),
        "WHEEL": wheel,
    }


def to_shell(facts: Mapping[str, str]) -> str:
    """Return the facts as assignments that any shell reads back as they are."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in facts.items())


def sibling(target: Target) -> Target | None:
    """Return the same board with the other JetPack, if it is a target."""
    name = target.name.removesuffix("-jp7") if target.name.endswith("-jp7") else f"{target.name}-jp7"
    return TARGETS.get(name)


def _largest_graph(manifest: Manifest) -> int:
    graphs = (manifest.vision_encoder, *manifest.language_model.graphs)
    return max(sum(manifest.files[file].size for file in (graph.file, *graph.data)) for graph in graphs)
