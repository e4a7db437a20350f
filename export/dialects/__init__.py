"""Ways to write attention and its KV cache; the layers around it are the same in all of them."""

from __future__ import annotations

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.export.dialects.decomposed import Decomposed
from divprune_edge.export.dialects.dialect import Dialect
from divprune_edge.export.dialects.fused import OnnxRuntime
from divprune_edge.export.dialects.portable import Portable
from divprune_edge.export.dialects.static import Static

DIALECTS: dict[str, type[Dialect]] = {
    dialect.facts.name: dialect for dialect in (Portable, OnnxRuntime, Static, Decomposed)
}

__all__ = ["DIALECTS", "Decomposed", "Dialect", "OnnxRuntime", "Portable", "Static", "find_dialect"]


def find_dialect(name: str) -> type[Dialect]:
    """Return the dialect called ``name``; an instance of it serves one graph.

    Raises:
        UserError: there is none.
    """
    try:
        return DIALECTS[name]
    except KeyError:
        raise UserError(
            f"There is no dialect '{name}'{did_you_mean(name, DIALECTS)}: choose one of {', '.join(DIALECTS)}.",
            code="dialect-unknown",
        ) from None
