"""Weights of a tower that no graph needs, by the config itself: a spec of the wrong depth must not vouch for itself."""

from __future__ import annotations

import re


def is_unused(name: str, feature_layer: int | list[int], layers: int) -> bool:
    """Whether a weight, by its name in the tower, is of a pooled output or of a layer above the feature.

    ``feature_layer`` is ``vision_feature_layer``, ``layers`` the depth of the tower.
    """
    if name.startswith(("post_layernorm.", "head.")):
        return True
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    indices = feature_layer if isinstance(feature_layer, list) else [feature_layer]
    # Hidden state i comes after i layers.
    return layer is not None and int(layer.group(1)) >= max(i if i >= 0 else layers + 1 + i for i in indices)
