"""Right or wrong, and how sure the shares are."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable


def normalise(text: str) -> str:
    """Return an answer as it is compared: NFKC, lower case, one space, without a final full stop or quotes."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", text).strip(" \t\n.\"'")


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    """Whether ``answer`` is one of the accepted ones."""
    return normalise(answer) in {normalise(text) for text in accepted}


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of the share ``hits / total``; (0, 1) where there is nothing."""
    if not total:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
