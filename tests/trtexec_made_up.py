"""Measurements in trtexec's formats, with figures that are made up."""

from __future__ import annotations

import json
from typing import Any


def made_up_times(compute: list[float], enqueue: float = 0.05) -> str:
    """What ``--exportTimes`` writes, spacing included; the figures are made up."""
    entries = []
    for i, ms in enumerate(compute):
        start = 10.0 * i
        fields = {
            "startEnqMs": start,
            "endEnqMs": start + enqueue,
            "startH2dMs": start,
            "endH2dMs": start,
            "startComputeMs": start,
            "endComputeMs": start + ms,
            "startD2hMs": start + ms,
            "endD2hMs": start + ms,
            "h2dMs": 0,
            "computeMs": ms,
            "d2hMs": 0,
            "latencyMs": ms,
        }
        entries.append("{ " + ", ".join(f'"{name}" : {value:g}' for name, value in fields.items()) + " }")
    return "[\n  " + "\n, ".join(entries) + "\n]\n"


def made_up_profile(layers: dict[str, float], count: int = 100) -> str:
    """What ``--exportProfile`` writes; name -> median in milliseconds, made up."""
    total = sum(layers.values()) or 1.0
    lines = ["[", f'  {{ "count" : {count} }}']
    for name, ms in layers.items():
        lines.append(
            f', {{ "name" : "{name}", "timeMs" : {ms * count:g}, "averageMs" : {ms:g}, "medianMs" : {ms:g}, '
            f'"percentage" : {100 * ms / total:g} }}'
        )
    return "\n".join([*lines, "]", ""])


def made_up_layers(names: list[str], metadata: dict[str, str] | None = None) -> str:
    """What ``--exportLayerInfo`` writes with detailed verbosity; made up."""
    layers: list[dict[str, Any]] = [
        {"Name": name, "LayerType": "kgen", "Inputs": [], "Metadata": (metadata or {}).get(name, "")}
        for name in names
    ]
    # TensorRT writes the separator between nodes as it is.
    return json.dumps({"Layers": layers, "Bindings": ["a", "b"]}).replace("\\u001e", "\x1e")
