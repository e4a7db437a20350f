"""SigLIP's vision tower (Zhai et al. 2023, 2303.15343): patches alone, each with a bias.

What comes after its last layer, a norm and a pooling head, is in no hidden state, so no feature needs it.
"""

from __future__ import annotations

from divprune_edge.models.files import Config
from divprune_edge.models.towers.vit import VitSpec, read_vit


def read_siglip(config: Config, feature_layer: int | list[int], strategy: str) -> VitSpec:
    """Return the spec of a ``vision_config``; absent fields take ``SiglipVisionConfig``'s defaults."""
    return read_vit(
        config,
        feature_layer,
        strategy,
        patch_size=16,
        norm_eps=1e-6,
        activation_name="gelu_pytorch_tanh",
        class_token=False,
        pre_norm=False,
        patch_bias=True,
    )
