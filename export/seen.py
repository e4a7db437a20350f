"""What the graphs of an export make of images, run by ONNX Runtime: for the calibration and the verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.plan import ExportPlan
from divprune_edge.manifest import VISUAL_TOKENS, tile_input
from divprune_edge.processing.image_input import Groups, ImageInput

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Seen:
    """What was made of one image: outputs [groups, N, …] by name, and its rows."""

    outputs: dict[str, Array]
    groups: Groups

    @property
    def tokens(self) -> Array:
        """Visual tokens [groups, N, D]."""
        return self.outputs[VISUAL_TOKENS]

    @property
    def signals(self) -> dict[str, Array]:
        """All other outputs."""
        return {name: value for name, value in self.outputs.items() if name != VISUAL_TOKENS}

    @property
    def read(self) -> Array:
        """Visual tokens [m, D] in the order in which the language model reads them, unpruned."""
        valid = self.groups.valid
        return np.asarray(self.tokens[valid][np.argsort(self.groups.reading[valid])])


def see(
    plan: ExportPlan, encoder: Any, assemble: Any, image: ImageInput, signals: Sequence[str] = ()
) -> Seen:
    """Run the graphs on an image; ``assemble`` is None where it has one tile.

    Args:
        plan: that they were exported by.
        encoder: session of the vision encoder.
        assemble: session of the graph that makes rows of tiles' tokens.
        image: what to encode.
        signals: outputs beyond the visual tokens; all that there are where there is ``assemble``.
    """
    names, groups = [VISUAL_TOKENS, *signals], image.groups(plan.candidates, plan.sources, plan.per)
    found = dict(zip(names, encoder.run(names, image.inputs), strict=True))
    if assemble is not None:
        feed = {tile_input(name): value for name, value in found.items()} | {"rows": groups.rows}
        feed |= {"weights": groups.weights} if plan.sources > 1 else {}
        found = dict(zip(names, assemble.run(names, feed), strict=True))
    return Seen(found, groups)
