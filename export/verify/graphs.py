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


class LanguageGraph:
    """A language model graph, or the graphs of a chain, and its KV cache: a class for each dialect.

    Ragged batches are padded on the right where a dialect says nothing else.
    """

    pads_left = False

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
        """Prefill ``ids``, in one piece or cut before the columns ``cuts``, then feed ``forced`` one by one.

        Args:
            ids: int64 [batch, length], padded on the left where ``mask`` is False.
            visual: [batch, K, D].
            mask: bool [batch, length].
            forced: int64 [batch, steps].
            cuts: ascending columns in 1 … length - 1; only prompts without padding come in several pieces.
            positions: int64 [3, batch, length + steps]; None: one for each id, without a gap.

        Returns:
            float32 [batch, steps + 1, V].
        """
        batch, length = ids.shape
        lengths = mask.sum(axis=1)
        if not self.pads_left:
            ids = _padded_right(ids, lengths)
            if positions is not None:
                rolled = [_padded_right(axis[:, :length], lengths) for axis in positions]
                positions = np.concatenate([np.stack(rolled), positions[..., length:]], axis=-1)
        everything = np.concatenate([ids, forced], axis=1)

        def filled(columns: int) -> Array:
            """Rows of each sequence's cache once so many columns were fed."""
            return np.full(batch, columns) if columns < length else lengths + columns - length

        cache, logits = self._begin(batch, everything.shape[1]), []
        ends = [*cuts, *range(length, everything.shape[1] + 1)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            before, after = filled(begin), filled(end)
            inputs = self._inputs(end - begin, before, after, max(value.shape[2] for value in cache.values()))
            if positions is not None:
                inputs["position_ids"] = positions[..., begin:end]
            last = np.full(batch, end - begin - 1) if self.pads_left else after - before - 1
            chunk, rows = self._run(everything[:, begin:end], visual, last, inputs, cache)
            self._keep(rows, before, after, cache)
            if end >= length:
                logits.append(chunk)
        return np.stack(logits, axis=1)

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

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        """Return a cache for ``batch`` sequences of at most ``rows`` positions."""
        return self._cache(batch, rows)

    def _inputs(self, seq: int, before: Array, after: Array, rows: int) -> dict[str, Array]:
        """Return what the dialect wants to know of ``seq`` new columns of a cache that has so many ``rows``.

        Sequences fill ``before`` of them, ``after`` behind the step.
        """
        raise NotImplementedError

    def _keep(self, rows: dict[str, Array], before: Array, after: Array, cache: dict[str, Array]) -> None:
        """Put what the graph gives of keys and values into the cache."""
        cache.update({name.replace("present.", "past_key_values."): value for name, value in rows.items()})

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


class PortableLanguageGraph(LanguageGraph):
    """Dialect ``portable``: the cache grows."""

    pads_left = True

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        return self._cache(batch, 0)

    def _inputs(self, seq: int, before: Array, after: Array, rows: int) -> dict[str, Array]:
        padding = (rows + seq - after)[:, None]
        columns = np.arange(rows + seq)
        return {
            "attention_mask": columns >= padding,
            "position_ids": np.maximum(columns[rows:] - padding, 0),
        }


class FusedLanguageGraph(LanguageGraph):
    """Dialect ``onnxruntime``."""

    def _inputs(self, seq: int, before: Array, after: Array, rows: int) -> dict[str, Array]:
        return {
            "seqlens_k": (after - 1).astype(np.int32),
            "total_sequence_length": np.array(after.max(), np.int32),
        }


class _FixedLanguageGraph(LanguageGraph):
    """A cache whose size is part of the graph. Rows that were never written hold noise: no mask may show them."""

    def _begin(self, batch: int, rows: int) -> dict[str, Array]:
        least = min(value.shape[2] for value in self._past.values())
        assert rows <= least, f"{rows} rows do not fit {least}"
        return self._cache(batch, rows, fill=_NOISE)


class StaticLanguageGraph(_FixedLanguageGraph):
    """Dialect ``static``: the graph writes the new rows itself."""

    def _inputs(self, seq: int, before: Array, after: Array, rows: int) -> dict[str, Array]:
        columns, held = before[:, None] + np.arange(seq), np.arange(rows)
        seen = held <= columns[..., None]
        if self._window is not None:
            seen &= columns[..., None] - held < self._window
        return {
            "attention_mask": seen[:, None],
            "position_ids": columns,
            "write_indices": before.astype(np.int64),
        }


class DecomposedLanguageGraph(_FixedLanguageGraph):
    """Dialect ``decomposed``: the caller appends the new rows."""

    def _inputs(self, seq: int, before: Array, after: Array, rows: int) -> dict[str, Array]:
        columns, held = before[:, None] + np.arange(seq), np.arange(rows)
        filled, visible = held < before[:, None, None], np.tri(seq, dtype=bool)
        if self._window is not None:
            filled = filled & (columns[..., None] - held < self._window)
            visible &= ~np.tri(seq, k=-self._window, dtype=bool)
        return {
            "cache_mask": filled[:, None],
            "new_mask": np.tile(visible, (len(before), 1, 1, 1)),
            "position_ids": columns,
        }

    def _keep(self, rows: dict[str, Array], before: Array, after: Array, cache: dict[str, Array]) -> None:
        for name, value in rows.items():
            past = cache[name.replace("new_key_values.", "past_key_values.")]
            for row, (begin, end) in enumerate(zip(before, after, strict=True)):
                past[row, :, begin:end] = value[row, :, : end - begin]


def _padded_right(rows: Array, lengths: Array) -> Array:
    """Return rows [batch, length] whose padding, on the left, was moved to the right."""
    return np.stack([np.roll(row, int(n)) for row, n in zip(rows, lengths, strict=True)])


# Large beside keys and values, and finite, as the dialects ask for.
_NOISE = 50.0

_GRAPHS: dict[str, type[LanguageGraph]] = {
    "portable": PortableLanguageGraph,
    "onnxruntime": FusedLanguageGraph,
    "static": StaticLanguageGraph,
    "decomposed": DecomposedLanguageGraph,
}


def open_language(paths: Sequence[Path], dialect: str, window: int | None = None) -> LanguageGraph:
    """Open a language model of any dialect, one graph or the graphs of a chain.

    ``window`` is that of a mask which is made outside of the graph.
    """
    return _GRAPHS[dialect](paths, window)
