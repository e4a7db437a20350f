"""A checkpoint with an adapter merged into it, one weight at a time and in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.export.adapter import CONFIG, MERGE, Adapter, LowRank, adapter_tensors, open_adapter
from divprune_edge.export.arrays import widen
from divprune_edge.export.checkpoint import Checkpoint, StoredTensor
from divprune_edge.manifest import AdapterSource
from divprune_edge.models.families import family_of

_ROWS = 512
"""Rows of B·A that are made at a time."""


def with_adapter(checkpoint: Checkpoint, adapter: Path | None, *, ignore: bool = False) -> Checkpoint:
    """Return the checkpoint as it is to be exported: with an adapter merged if one was asked for.

    Args:
        checkpoint: the whole weights.
        adapter: folder of the adapter to merge.
        ignore: leave out one that lies beside the weights.

    Raises:
        UserError: one lies beside the weights and nothing was said about it, or ``adapter`` cannot be merged.
    """
    if adapter is not None and ignore:
        raise UserError(
            "--adapter and --no-adapter exclude each other: leave one of them out.", code="options-exclusive"
        )
    if adapter is not None:
        return MergedCheckpoint(checkpoint, open_adapter(adapter, family_of(checkpoint.config)))
    if (checkpoint.folder / CONFIG).is_file() and not ignore:
        raise UserError(
            f"'{checkpoint.folder}' holds whole weights and an adapter ({CONFIG}), which transformers would apply: "
            f"merge it with '--adapter {checkpoint.folder}', or export the weights without it with --no-adapter.",
            code="adapter-beside-weights",
        )
    return checkpoint


class MergedCheckpoint(Checkpoint):
    """A checkpoint whose weights have an adapter merged into them when they are read.

    Raises:
        UserError: the adapter does not belong to this checkpoint.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        super().__init__(base.folder, base.name, base.revision)
        base.close()
        self.adapter = adapter
        self._sums: dict[str, LowRank] = {}
        self._replaced: dict[str, str] = {}
        self._match()

    @property
    def touched(self) -> Collection[str]:
        """Names of the weights that the adapter changes."""
        return self._sums.keys() | self._replaced.keys()

    @cached_property
    def adapter_source(self) -> AdapterSource:
        """What is merged; its file is read for its hash."""
        return self.adapter.source()

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor, in float32 where something was added to it.

        Memory: two float32 copies of this one at most, and A and B.

        Raises:
            UserError: the adapter holds values that are not finite.
        """
        replaced = self._replaced.get(name)
        weight = super().read(name) if replaced is None else self._part(replaced)
        low = self._sums.get(name)
        if low is None:
            return weight
        a, b = (widen(self._part(key)) for key in (low.a, low.b))
        if low.embedding:
            a, b = b.T, a.T
        result = widen(weight)
        for start in range(0, len(result), _ROWS):
            part = b[start : start + _ROWS] @ a
            part *= np.float32(low.scale)
            result[start : start + _ROWS] += part
        return result

    def _match(self) -> None:
        """Find the weight that each part of the adapter belongs to, and check its shape."""
        there = {self.adapter.family.canonical_name(name): name for name in self.tensors}
        tied = there.get("head.weight") is None
        stored = self._stored
        for canonical, low in self.adapter.sums.items():
            name = self._owner(canonical, low.a, there, tied)
            shapes = (stored[low.b].shape[:1], stored[low.a].shape[1:])
            if low.embedding:
                shapes = (stored[low.a].shape[1:], stored[low.b].shape[:1])
            self._check(name, low.a, (*shapes[0], *shapes[1]))
            self._sums[name] = low
        for canonical, key in self.adapter.replaced.items():
            name = self._owner(canonical, key, there, tied)
            self._check(name, key, stored[key].shape)
            self._replaced[name] = key

    def _owner(self, canonical: str, key: str, there: Mapping[str | None, str], tied: bool) -> str:
        if tied and canonical in ("head.weight", "decoder.embed_tokens.weight"):
            raise UserError(
                f"The adapter '{self.adapter.folder}' changes '{key}', but this model's output head and embedding are "
                f"one weight: {MERGE}.",
                code="adapter-on-tied-head",
            )
        name = there.get(canonical)
        if name is None:
            raise UserError(
                f"The adapter '{self.adapter.folder}' has '{key}', for which '{self.folder}' has no weight: it belongs "
                f"to another model ({self.adapter.base or 'it names none'}), give that one to --model.",
                code="adapter-does-not-fit",
            )
        return name

    def _check(self, name: str, key: str, shape: tuple[int, ...]) -> None:
        wanted = self.tensors[name].shape
        if shape == wanted:
            return
        raise UserError(
            f"The adapter '{self.adapter.folder}' has '{key}' for a weight of shape {list(shape)}, but '{name}' is "
            f"{list(wanted)}: give the model that it was trained on to --model; where its vocabulary was enlarged, "
            f"{MERGE}.",
            code="adapter-does-not-fit",
        )

    @cached_property
    def _stored(self) -> Mapping[str, StoredTensor]:
        return adapter_tensors(self.adapter.folder)

    def _part(self, key: str) -> npt.NDArray[Any]:
        """Return one tensor of the adapter's file."""
        if self._stored[key].dtype == "BF16":
            import ml_dtypes  # registers the type with NumPy

            _ = ml_dtypes.bfloat16
        part = np.asarray(self._handle(self.adapter.file).get_tensor(key))
        if not np.isfinite(part.astype(np.float32, copy=False)).all():
            raise UserError(
                f"The adapter '{self.adapter.folder}' holds values that are not finite in '{key}': it is damaged or "
                "its training diverged, get another.",
                code="adapter-not-finite",
            )
        return part
