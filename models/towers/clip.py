"""CLIP's vision tower (Radford et al. 2021, 2103.00020): a class token in front, normalised before the first layer."""

from __future__ import annotations

from divprune_edge.models.files import Config
from divprune_edge.models.towers.vit import VitSpec, read_vit


def read_clip(config: Config, feature_layer: int | list[int], strategy: str) -> VitSpec:
    """Return the spec of a ``vision_config``; absent fields take ``CLIPVisionConfig``'s defaults."""
    return read_vit(
        config,
        feature_layer,
        strategy,
        patch_size=32,
        norm_eps=1e-5,
        activation_name="quick_gelu",
        class_token=True,
        pre_norm=True,
        patch_bias=False,
    )
