"""The interface between the generation loop and whatever runs the graphs.

Tensors that only travel from graph to graph are opaque and stay on the device; the host sees pixels, ids,
indices and one row of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import SelectorInfo

DeviceTensor = Any
"""A tensor in the backend's own form."""


@dataclass(frozen=True)
class Encoded:
    """What the vision encoder made of an image: visual tokens [tiles, N, D] and the signals asked for."""

    tokens: DeviceTensor
    signals: Mapping[str, DeviceTensor] = field(default_factory=dict)


def check_rows(selector: SelectorInfo, valid: npt.NDArray[np.bool_]) -> None:
    """Check that every image has as many rows that count, in ``valid`` [batch, N], as a selector keeps.

    Raises:
        UserError: one has fewer.
    """
    rows = int(valid.sum(axis=1).min())
    if rows < selector.keep:
        raise UserError(
            f"Selector '{selector.id}' keeps {selector.keep} tokens, but the image has only {rows} "
            "that count: choose a smaller budget with --keep.",
            code="keep-exceeds-rows",
        )


CacheRows = tuple[npt.NDArray[Any], ...]
"""The first rows of a KV cache on the host: key and value of each layer, [1, kv_heads, rows, head_dim]."""


class LanguageSession(Protocol):
    """One sequence on the language model: a KV cache and the visual tokens that its ids refer to."""

    @property
    def length(self) -> int:
        """Number of positions in the KV cache."""
        ...

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Append ``ids`` (token table) at the next positions and return the last one's logits.

        Prefill and decode are the same call, with many ids and with one.

        Args:
            ids: at least one id; below V a vocabulary row, V + i row i of the visual tokens.
            chunk: feed at most so many ids at a time (bounds memory; the result is the same).

        Returns:
            float32 [vocabulary], valid until the next call.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        ...

    def rows(self, length: int) -> CacheRows:
        """Return a copy of the first ``length`` rows, for another sequence to begin with."""
        ...


class LanguageBatch(Protocol):
    """Several sequences on the language model side by side, each with visual tokens of its own."""

    def extend(self, ids: Sequence[Sequence[int]], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Append ids to each sequence and return the logits of each one's last.

        Args:
            ids: the new ids of every sequence, as many as each has; one without any has ended: its logits mean
                nothing, and it cannot go on.
            chunk: as in :meth:`LanguageSession.extend`.

        Returns:
            float32 [sequences, vocabulary], valid until the next call.

        Raises:
            UserError: a sequence is longer than the context.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences alone, in this order; what the others held is given back."""
        ...


class Backend(Protocol):
    """The three graphs of a bundle on one device."""

    @property
    def name(self) -> str:
        """What runs the graphs, as reported with an answer."""
        ...

    def load(self, selector: SelectorInfo | None) -> None:
        """Create the sessions that a question with ``selector`` needs, so that no question pays for it.

        Raises:
            UserError: a graph cannot be loaded on the device that was asked for.
        """
        ...

    def encode(self, pixels: npt.NDArray[np.uint8], signals: Sequence[str] = ()) -> Encoded:
        """Run the vision encoder on pixels [tiles, H, W, 3].

        Args:
            pixels: what the preprocessing made.
            signals: outputs beyond the visual tokens that a selector will need.
        """
        ...

    def select(
        self, encoded: Encoded, selector: SelectorInfo | None, valid: npt.NDArray[np.bool_]
    ) -> tuple[DeviceTensor, npt.NDArray[np.int64]]:
        """Prune visual tokens [batch, N, D] to [batch, K, D].

        Args:
            encoded: what :meth:`encode` returned, with the selector's signals.
            selector: None keeps all N.
            valid: bool [batch, N]; rows that may be picked.

        Returns:
            The kept tokens and their indices, int64 [batch, K]: ascending, or for a method that merges, what
            each kept token stands for.

        Raises:
            UserError: fewer than K rows are valid.
        """
        ...

    def to_host(self, tensor: DeviceTensor) -> npt.NDArray[Any]:
        """Return a tensor's values on the host."""
        ...

    def to_device(self, array: npt.NDArray[Any]) -> DeviceTensor:
        """Return a tensor with the values of ``array``, where the graphs run."""
        ...

    def language(self, visual: DeviceTensor, rows: CacheRows | None = None) -> LanguageSession:
        """Begin a sequence whose ids may refer to the rows of ``visual`` [1, K, D].

        Args:
            visual: the visual tokens.
            rows: what the cache holds at the start; nothing if None.
        """
        ...


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """A backend that answers several questions at once; ``encode`` and ``select`` take several images."""

    @property
    def batch_takes_rows(self) -> bool:
        """Whether a batch may begin with rows that its sequences have in common."""
        ...

    def check_batch(self, chunk: int | None) -> None:
        """Check that the bundle's language model takes several sequences, and prompts in pieces of ``chunk`` ids.

        Raises:
            UserError: it does not; the sentence names the dialect and says what to do.
        """
        ...

    def language_batch(self, visual: DeviceTensor, rows: CacheRows | None = None) -> LanguageBatch:
        """Begin a sequence for each row of ``visual`` [sequences, K, D].

        Args:
            visual: the visual tokens of each sequence.
            rows: what every sequence's cache holds at the start; nothing if None.

        Raises:
            UserError: see :meth:`check_batch`; or rows where ``batch_takes_rows`` is False.
        """
        ...
