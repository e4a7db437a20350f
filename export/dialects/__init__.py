"""Ways to write attention and its KV cache; the layers around it are the same in all of them."""

from __future__ import annotations

from divprune_edge.export.dialects.base import Dialect
from divprune_edge.export.dialects.portable import Portable

DIALECTS: dict[str, type[Dialect]] = {"portable": Portable}

__all__ = ["DIALECTS", "Dialect", "Portable"]
