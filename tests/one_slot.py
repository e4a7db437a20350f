"""A session of one slot, for tests that follow one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divprune_edge.runtime.backends import CacheRows


class OneSlot:
    """A sequence alone in its session: several ids are an ``extend``, one is a ``step``."""

    def __init__(self, backend: Any, visual: Any, rows: CacheRows | None = None) -> None:
        self.session = backend.session()
        self.slot = self.session.add(visual, rows)

    @property
    def length(self) -> int:
        return self.session.length(self.slot)

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> np.ndarray:
        if len(ids) > 1 or chunk or ids[0] >= self._vocabulary:
            return self.session.extend(self.slot, ids, chunk=chunk).logits
        return self.session.step({self.slot: ids[0]})[self.slot].logits

    def truncate(self, length: int) -> None:
        self.session.truncate(self.slot, length)

    def rows(self, length: int) -> CacheRows:
        return self.session.rows(self.slot, length)

    @property
    def _vocabulary(self) -> int:
        model = getattr(self.session, "_model", self.session)
        return int((getattr(model, "info", None) or model._info).embedding_rows)
