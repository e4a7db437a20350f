"""The exported graphs, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.chain import Chain

Array = npt.NDArray[Any]

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_graph(model: Path | bytes) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU for a file, or for a serialised small model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about initialisers are not the reader's business
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch has threads, too
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class _OpenedLanguage:
    """A session, and what its inputs and outputs say about tokens and cache."""

    def __init__(self, paths: Sequence[Path], window: int | None = None) -> None:
        opened = [open_graph(path) for path in paths]
        self._session: Any = opened[0] if len(opened) == 1 else Chain(opened)
        self._window = window
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._past = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        self._token_dtype = _NUMPY[inputs["visual_tokens"].type]
        # Where the graph says the next id: that of each sequence in each run, beside its logits' largest.
        self.forbidden: tuple[tuple[int, int], ...] = ()
        self.said: list[tuple[int, int]] = []

    def follow(
        self,
        ids: Array,
        visual: Array,
        mask: Array,
        forced: Array,
        cuts: Sequence[int] = (),
        positions: Array | None = None,
    ) -> Array:
        """See :meth:`LanguageGraph.follow`."""
        raise NotImplementedError

    def read(
        self, ids: Array, visual: Array, positions: Array | None, asked: dict[str, Array]
    ) -> dict[tuple[int, str], Array]:
        """Prefill one sequence of a chain uncut; return what each of its graphs reads, by the graph and the name.

        ``asked`` are the inputs of what a method reads; see ``export.scores``.
        """
        assert isinstance(self._session, Chain)
        self._session.asked, self._session.read = asked, {}
        self.follow(ids, visual, np.ones(ids.shape, bool), np.empty((1, 0), np.int64), positions=positions)
        self._session.asked = {}
        return self._session.read

    def _cache(self, batch: int, rows: int, fill: float = 0) -> dict[str, Array]:
        """Return a cache of ``rows`` rows for ``batch`` sequences, or of as many as the graph has."""

        def rows_of(value: Any) -> int:
            return value.shape[2] if isinstance(value.shape[2], int) else rows

        return {
            name: np.full((batch, value.shape[1], rows_of(value), value.shape[3]), fill, _NUMPY[value.type])
            for name, value in self._past.items()
        }

    def _run(
        self, ids: Array, visual: Array, index: Array, inputs: dict[str, Array], cache: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Feed ids [batch, seq]; return logits [batch, V] at ``index`` and the cache outputs by their names."""
        feed = {
            "input_ids": ids,
            "visual_tokens": visual.astype(self._token_dtype, copy=False),
            "logits_index": index.astype(np.int64),
            **inputs,
            **cache,
        }
        results = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        logits = np.asarray(results.pop("logits"))
        if "next_id" in results:
            allowed = logits.copy()
            for first, last in self.forbidden:
                allowed[:, first : last + 1] = -np.inf
            said = results.pop("next_id").tolist()
            self.said += zip(said, allowed.argmax(axis=1).tolist(), strict=True)
        return logits, results


class LanguageGraph(_OpenedLanguage):
    """A language model graph (dialect ``portable``) and its growing KV cache."""

    def start(self, batch: int) -> dict[str, Array]:
        """Return the empty cache of ``batch`` sequences."""
        return self._cache(batch, 0)

    def step(
        self, ids: Array, visual: Array, mask: Array, positions: Array, cache: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Feed a chunk; return float32 logits [batch, V] of its last column and the grown cache.

        Args:
            ids: int64 [batch, seq] of the token table.
            visual: [batch, K, D].
            mask: bool [batch, past + seq].
            positions: int64 [batch, seq], or [3, batch, seq].
            cache: what the step before returned.
        """
        inputs = {"attention_mask": mask, "position_ids": positions}
        last = np.full(len(ids), ids.shape[1] - 1)
        logits, grown = self._run(ids, visual, last, inputs, cache)
        return logits, _as_past(grown)

    def follow(
        self,
        ids: Array,
        visual: Array,
        mask: Array,
        forced: Array,
        cuts: Sequence[int] = (),
        positions: Array | None = None,
    ) -> Array:
        """Prefill ``ids``, in one piece or cut before the columns ``cuts``, then feed ``forced`` one by one.

        Args:
            ids: int64 [batch, length], padded on the left where ``mask`` is False.
            visual: [batch, K, D].
            mask: bool [batch, length].
            forced: int64 [batch, steps].
            cuts: ascending columns in 1 … length - 1.
            positions: int64 [3, batch, length + steps]; None: one for each id, without a gap.

        Returns:
            float32 [batch, steps + 1, V].
        """
        batch = len(ids)
        everything = np.concatenate([ids, forced], axis=1)
        allowed = np.concatenate([mask, np.ones(forced.shape, bool)], axis=1)
        if positions is None:
            positions = np.maximum(np.cumsum(allowed, axis=1) - 1, 0)
        length, total = ids.shape[1], everything.shape[1]
        ends = [*cuts, *range(length, total + 1)]
        logits, cache = [], self.start(batch)
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            chunk, cache = self.step(
                everything[:, begin:end], visual, allowed[:, :end], positions[..., begin:end], cache
            )
            if end >= length:
                logits.append(chunk)
        return np.stack(logits, axis=1)


class _RightPadded(_OpenedLanguage):
    """A language model graph whose cache has a capacity; ragged batches are padded on the right."""

    def follow(
        self,
        ids: Array,
        visual: Array,
        mask: Array,
        forced: Array,
        cuts: Sequence[int] = (),
        positions: Array | None = None,
    ) -> Array:
        """As :meth:`LanguageGraph.follow`; padding moves to the right, where these dialects want it."""
        lengths = mask.sum(axis=1)
        ids = np.stack([np.roll(row, int(n)) for row, n in zip(ids, lengths, strict=True)])
        length, placed = ids.shape[1], positions
        if placed is not None:
            rolled = [np.roll(placed[:, i, :length], int(n), axis=-1) for i, n in enumerate(lengths)]
            placed = np.concatenate([np.stack(rolled, axis=1), placed[..., length:]], axis=-1)

        def at(begin: int, end: int) -> Array | None:
            return None if placed is None else placed[..., begin:end]

        cache = self._begin(len(ids), ids.shape[1] + forced.shape[1])
        logits, ends = [], [*cuts, ids.shape[1]]
        for begin, end in zip([0, *cuts], ends, strict=True):
            # Only whole rows have padding, and those come in one piece.
            filled = lengths if end == ids.shape[1] else np.full(len(ids), end)
            chunk = self._step(
                ids[:, begin:end], visual, np.full(len(ids), begin), filled, cache, at(begin, end)
            )
        logits.append(chunk)
        for step in range(forced.shape[1]):
            column = forced[:, step : step + 1]
            place = at(length + step, length + step + 1)
            logits.append(self._step(column, visual, lengths + step, lengths + step + 1, cache, place))
        return np.stack(logits, axis=1)

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        """Return a cache for ``batch`` sequences of at most ``rows`` positions."""
        raise NotImplementedError

    def _step(
        self,
        ids: Array,
        visual: Array,
        before: Array,
        after: Array,
        cache: dict[str, Array],
        positions: Array | None,
    ) -> Array:
        """Feed ids [batch, seq]; sequences had ``before`` rows and have ``after``. Updates the cache."""
        columns = before[:, None] + np.arange(ids.shape[1])
        inputs = self._inputs(columns, after, max(value.shape[2] for value in cache.values()))
        if positions is not None:
            inputs["position_ids"] = positions
        logits, rows = self._run(ids, visual, after - before - 1, inputs, cache)
        self._keep(rows, before, after, cache)
        return logits

    def _inputs(self, columns: Array, after: Array, capacity: int) -> dict[str, Array]:
        """Return what the dialect wants to know of new ``columns`` [batch, seq] of a cache."""
        raise NotImplementedError

    def _keep(self, rows: dict[str, Array], before: Array, after: Array, cache: dict[str, Array]) -> None:
        """Put what the graph gives of keys and values into the cache."""
        cache.update(_as_past(rows))


class FusedLanguageGraph(_RightPadded):
    """Dialect ``onnxruntime``."""

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        return self._cache(batch, rows)

    def _inputs(self, columns: Array, after: Array, capacity: int) -> dict[str, Array]:
        return {
            "seqlens_k": (after - 1).astype(np.int32),
            "total_sequence_length": np.array(after.max(), np.int32),
        }


class _FixedLanguageGraph(_RightPadded):
    """A cache whose size is part of the graph. Rows that were never written hold noise: no mask may show them."""

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        least = min(value.shape[2] for value in self._past.values())
        assert rows <= least, f"{rows} rows do not fit {least}"
        return self._cache(batch, rows, fill=_NOISE)


class StaticLanguageGraph(_FixedLanguageGraph):
    """Dialect ``static``: the graph writes the new rows itself."""

    def _inputs(self, columns: Array, after: Array, capacity: int) -> dict[str, Array]:
        rows = np.arange(capacity)
        seen = rows <= columns[..., None]
        if self._window is not None:
            seen &= columns[..., None] - rows < self._window
        return {
            "attention_mask": seen[:, None],
            "position_ids": columns,
            "write_indices": columns[:, 0].astype(np.int64),
        }


class DecomposedLanguageGraph(_FixedLanguageGraph):
    """Dialect ``decomposed``: the caller appends the new rows."""

    def _inputs(self, columns: Array, after: Array, capacity: int) -> dict[str, Array]:
        batch, seq = columns.shape
        rows = np.arange(capacity)
        filled, visible = rows < columns[:, :1, None], np.tri(seq, dtype=bool)
        if self._window is not None:
            filled = filled & (columns[..., None] - rows < self._window)
            visible &= ~np.tri(seq, k=-self._window, dtype=bool)
        return {
            "cache_mask": filled[:, None],
            "new_mask": np.tile(visible, (batch, 1, 1, 1)),
            "position_ids": columns,
        }

    def _keep(self, rows: dict[str, Array], before: Array, after: Array, cache: dict[str, Array]) -> None:
        for name, value in rows.items():
            past = cache[name.replace("new_key_values.", "past_key_values.")]
            for row, (begin, end) in enumerate(zip(before, after, strict=True)):
                past[row, :, begin:end] = value[row, :, : end - begin]


def _as_past(present: dict[str, Array]) -> dict[str, Array]:
    return {name.replace("present.", "past_key_values."): value for name, value in present.items()}


# Large beside keys and values, and finite, as the dialects ask for.
_NOISE = 50.0

AnyLanguageGraph = LanguageGraph | _RightPadded
"""A language model graph in one of the dialects; what they share is ``follow``."""

_GRAPHS: dict[str, type[LanguageGraph] | type[_RightPadded]] = {
    "portable": LanguageGraph,
    "onnxruntime": FusedLanguageGraph,
    "static": StaticLanguageGraph,
    "decomposed": DecomposedLanguageGraph,
}


def open_language(paths: Sequence[Path], dialect: str, window: int | None = None) -> AnyLanguageGraph:
    """Open a language model of any dialect, one graph or the graphs of a chain.

    ``window`` is that of a mask which is made outside of the graph.
    """
    return _GRAPHS[dialect](paths, window)
