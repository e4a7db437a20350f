"""The activation functions that the supported towers, projectors and decoders name in their configs."""

from __future__ import annotations

from divprune_edge.errors import UserError

CANONICAL = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "linear": "linear",
}
"""Name in a config -> name in the graph builder."""
GATES = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2", "sigmoid")
"""Those that leave hardly anything negative: -0.28 at most, whatever goes in."""


def activation(name: str, where: str) -> str:
    """Return the canonical name of an activation.

    Raises:
        UserError: the activation is unknown.
    """
    try:
        return CANONICAL[name]
    except KeyError:
        known = ", ".join(sorted(CANONICAL))
        raise UserError(
            f"config.json: {where} is '{name}', supported are {known}.", code="config-unsupported"
        ) from None
