"""The inputs of the vision graph; :mod:`divprune_edge.processing.patches` makes what goes in."""

from __future__ import annotations

from divprune_edge.models.families.qwen_vl.spec import QwenVisionSpec
from divprune_edge.processing.patches import (
    AXES,
    PATCHES,
    PIXELS,
    PLACE_ROWS,
    PLACE_WEIGHTS,
    WINDOW_OF,
    WINDOWS,
)


def encoder_inputs(spec: QwenVisionSpec) -> dict[str, tuple[str, list[int | str]]]:
    """Return name -> element type and shape of each input of the graph.

    Frames have a grid in common, of n "patches"; they do not see each other.
    """
    inputs: dict[str, tuple[str, list[int | str]]] = {
        PIXELS: ("uint8", ["frames", PATCHES, spec.patch_values]),
        AXES: ("int64", [PATCHES, 2]),
    }
    if spec.positions is not None:
        inputs |= {PLACE_ROWS: ("int64", [PATCHES, 4]), PLACE_WEIGHTS: ("float32", [PATCHES, 4])}
    if spec.window_patches is not None:
        inputs |= {WINDOWS: ("int64", [WINDOWS, spec.window_patches]), WINDOW_OF: ("int64", [PATCHES])}
    return inputs
