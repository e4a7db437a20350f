"""What an image processor does to numbers, as the first nodes of an encoder."""

from __future__ import annotations

from typing import Any

from divprune_edge.manifest import Preprocessing
from divprune_edge.models.graph import Builder


def normalise(g: Builder, pixels: Any, facts: Preprocessing, dtype: str) -> Any:
    """uint8 [t, H, W, 3] to normalised [t, 3, H, W]; arithmetic in float32."""
    with g.scope("normalise"):
        x = g.op("Mul", g.cast(pixels, "float32"), g.constant(facts.rescale_factor, "float32"))
        x = g.op("Div", g.op("Sub", x, g.constant(facts.mean, "float32")), g.constant(facts.std, "float32"))
        x = g.op("Transpose", x, perm=[0, 3, 1, 2])
        return x if dtype == "float32" else g.cast(x, dtype)
