"""Vision towers that families share: their specs, their graph, and what signals look at in them.

All are vision transformers of one template (``vit.py``, ``vit_graph.py``). A new one is a file that reads its config,
and one line in :data:`TOWERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from divprune_edge.errors import UserError
from divprune_edge.models.files import Config, setting
from divprune_edge.models.towers.clip import read_clip
from divprune_edge.models.towers.siglip import read_siglip
from divprune_edge.models.towers.vit import PROBE, VitSpec

__all__ = ["PROBE", "TOWERS", "VitSpec", "read_tower"]

TOWERS: dict[str, Callable[[Config, int | list[int], str], VitSpec]] = {
    "clip_vision_model": read_clip,
    "siglip_vision_model": read_siglip,
}
"""``model_type`` of a ``vision_config`` -> its reader."""


def read_tower(config: Config, feature_layer: int | list[int], strategy: str) -> VitSpec:
    """Return the spec of a ``vision_config``; absent fields take the defaults of transformers' config class.

    Args:
        config: the vision part of a family's config.
        feature_layer: ``vision_feature_layer``, one index or several; negative ones count from the end.
        strategy: ``default`` drops the first row, ``full`` keeps it.

    Raises:
        UserError: another kind of tower, or sizes that do not fit each other.
    """
    kind = setting(config, "model_type", "clip_vision_model", str)
    if kind not in TOWERS:
        raise UserError(
            f"The vision tower is a '{kind}', supported are {' and '.join(map(repr, TOWERS))}.",
            code="model-unsupported",
        )
    return TOWERS[kind](config, feature_layer, strategy)
