"""Which edition of TensorRT this process builds with."""

from __future__ import annotations

import os
import sys

from divprune_edge.errors import DivpruneError
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition

_POLYGRAPHY = "POLYGRAPHY_USE_TENSORRT_RTX"


def use(edition: Edition) -> None:
    """Settle which edition this process builds with; Polygraphy knows only one.

    Raises:
        DivpruneError: the process has loaded Polygraphy for the other one already, as the builder does.
    """
    before = in_use()
    if edition is not before and sys.modules.get("polygraphy"):
        raise DivpruneError(
            f"This process has loaded Polygraphy for {before.title}, so it cannot build with {edition.title}: use "
            "another process.",
            code="tensorrt-editions-mixed",
        )
    os.environ[_POLYGRAPHY] = str(int(edition is TENSORRT_RTX))


def in_use() -> Edition:
    """Return the edition that this process builds with; TensorRT where nobody said."""
    return TENSORRT if os.environ.get(_POLYGRAPHY, "0") == "0" else TENSORRT_RTX
