"""What a method that prunes inside the language model is to the rest of the project.

A method *watches* layers: of each it reads one number per visual token. At a cut the numbers come to the host, four
bytes a token, and :attr:`Method.picks` says in NumPy which tokens stay. So there is one implementation of the choice,
and two of what is read: a reference on a :class:`View` of the layer, and a body that writes the same into the layer's
graph from a :class:`LayerGraph`, beside its attention. Both have the same few operations, so that the two read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import Numbering
from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.schedule import Cut

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
Queries = Literal["last", "asked", "text", "visual", "all"]
"""Rows whose attention is looked at: the last one of the prompt; the text behind the last visual token (the last row
where there is none); all text; all visual tokens; every row."""
Values = Mapping[str, npt.NDArray[np.float32]]
"""Name of a :class:`Watch` -> what was read of each visual token that is there, float32 [m]."""
Parameter = bool | int | float | str


@dataclass(frozen=True, eq=False)
class View:
    """One layer of one sequence of n tokens, as its prefill computes it.

    Of the layer at the cut (:attr:`Watch.offset` 1) there is what its projections need: ``middle`` and ``after`` are
    None.

    Attributes:
        queries: [heads, n, d], after the rotary embedding.
        keys: [kv_heads, n, d], likewise.
        before: hidden states that enter the layer, [n, D].
        middle: the same with its attention's output added, [n, D].
        after: hidden states that leave it, [n, D].
        visual: int64 [m]; rows of the visual tokens that are still there, ascending.
        text: int64 [n - m]; the others.
        normed: ``before`` and ``middle`` after the norm that their branch begins with, [n, D] each.
    """

    queries: Array
    keys: Array
    before: Array
    middle: Array | None
    after: Array | None
    visual: Indices
    text: Indices
    normed: tuple[Array, Array] | None = None

    def rows(self, queries: Queries) -> Indices:
        """Return the rows that ``queries`` stands for."""
        return query_rows(queries, self.visual, self.text)

    @cached_property
    def attention(self) -> Array:
        """Attention of every row over all rows, causal, float32 [heads, n, n]."""
        q, k = (np.asarray(x, np.float32) for x in (self.queries, self.keys))
        k = np.repeat(k, len(q) // len(k), axis=0)
        scores = q @ k.transpose(0, 2, 1) * np.float32(q.shape[-1] ** -0.5)
        scores = np.where(np.tri(q.shape[1], dtype=np.bool_), scores, np.float32(-np.inf))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(shares / shares.sum(-1, keepdims=True), np.float32)

    def shares(self, queries: Queries) -> Array:
        """Return what share of their attention these rows give to each visual token, float32 [heads, rows, m]."""
        return np.asarray(self.attention[:, self.rows(queries)][:, :, self.visual])

    def of_visual(self, hidden: Array) -> Array:
        """Return the visual tokens' rows of hidden states [n, D], float32 [m, D]."""
        return np.asarray(hidden[self.visual], np.float32)

    def of(self, queries: Queries, hidden: Array) -> Array:
        """Return some rows of hidden states [n, D], float32 [rows, D]."""
        return np.asarray(hidden[self.rows(queries)], np.float32)


class LayerGraph(Protocol):
    """The same in a graph; see :class:`View`. Values are opaque, those that it returns are float32."""

    @property
    def before(self) -> Any:
        """Hidden states [1, n, D] in the graph's type."""
        ...

    @property
    def middle(self) -> Any:
        """Likewise."""
        ...

    @property
    def after(self) -> Any:
        """Likewise."""
        ...

    @property
    def normed(self) -> tuple[Any, Any]:
        """Likewise, two of them."""
        ...

    @property
    def attention(self) -> Any:
        """Attention of every row over all rows, [heads, n, n]; a method that needs it pays n² for every head."""
        ...

    def shares(self, queries: Queries) -> Any:
        """Return [heads, rows, m]; the softmax is over all that a row sees, rows of the cache included."""
        ...

    def of_visual(self, hidden: Any) -> Any:
        """Return [m, D]."""
        ...

    def of(self, queries: Queries, hidden: Any) -> Any:
        """Return [rows, D]."""
        ...


@dataclass(frozen=True)
class Watch:
    """What a method reads of a layer: one number per visual token.

    Attributes:
        name: of the graph's output ``scores.<name>``.
        reference: ``(view) -> float32 [m]``.
        body: ``(ops, layer)`` writes the same; returns float32 [m].
        offset: which layer, counted from the last one before the cut: 0 is that one, -1 the one before it, 1 the layer
            at the cut, of which queries, keys and ``before`` are there, all of it still uncut. Its queries see no more
            than the piece that they come in, which is therefore the whole prompt.
        summed: the sum over every layer from :attr:`Schedule.since` on to the last one before the cut; tokens that
            leave take theirs along. Only with offset 0.
    """

    name: str
    reference: Callable[[View], npt.NDArray[np.float32]]
    body: Callable[[Ops, LayerGraph], Any]
    offset: int = 0
    summed: bool = False


Picks = Callable[[Values, int, int], Indices]
"""``(values, m, keep) -> int64 [keep]``: which of an image's m visual tokens stay, in any order; keep < m."""


@dataclass(frozen=True)
class Method:
    """One way to choose which visual tokens go on, at each of a schedule's cuts.

    Attributes:
        name: in the registry.
        citation: the paper.
        published: ``(layers, visual) -> cuts``: the published schedule for a language model of so many layers and so
            many visual tokens per image. A cut that would remove nothing is left out.
        picks: see :data:`Picks`; asked of each image by itself, never where ``keep`` is 0 or m. None where it chooses
            nothing: its cuts keep none.
        watches: what it reads.
        numbering: whether positions are counted anew after each cut (``compact``), or stay those that tokens had.
        since: the first layer of :attr:`Watch.summed`, for the published schedule: ``(layers) -> layer``.
        parameters: what is baked in.
        takes: names of further values that whoever asks may give for each visual token; they come to ``picks`` as well.
        deviations: where this form differs from the published method, one sentence each.
    """

    name: str
    citation: str
    published: Callable[[int, int], tuple[Cut, ...]]
    picks: Picks | None
    watches: tuple[Watch, ...] = ()
    numbering: Numbering = "compact"
    since: Callable[[int], int] = lambda layers: 0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


def query_rows(queries: Queries, visual: Indices, text: Indices) -> Indices:
    """Return the rows that ``queries`` stands for, ascending, of a piece with these rows; never none."""
    last = np.array([max(visual.max(initial=-1), text.max(initial=-1))], np.int64)
    if queries == "asked":
        found = text[text > visual.max(initial=-1)]
    else:
        found = {"last": last, "text": text, "visual": visual, "all": np.arange(last[0] + 1)}[queries]
    return found if found.size else last


def as_values(name: str, given: Any) -> npt.NDArray[np.float32]:
    """Return what whoever asks gives of an image's visual tokens, float32 [m].

    Raises:
        UserError: it is no array of one axis, of finite numbers.
    """
    try:
        found = np.asarray(given)
        with np.errstate(over="ignore"):
            values = found.astype(np.float32) if found.dtype.kind in "iuf" and found.ndim == 1 else None
    except (TypeError, ValueError):  # ragged lists, tensors that are not on the host
        values = None
    if values is None or not np.isfinite(values).all():
        raise UserError(
            f"'{name}' holds something that is no array [m] of finite numbers: give one for each image, with a number "
            "for each visual token.",
            code="schedule-values",
        )
    return values


def best(scores: npt.NDArray[np.floating[Any]], keep: int) -> Indices:
    """Return the ``keep`` largest of scores [m]; ties go to the smallest index."""
    return np.argsort(-np.asarray(scores, np.float32), kind="stable")[:keep].astype(np.int64)


def best_of(name: str) -> Picks:
    """Return the picks that take the largest values of one watch."""

    def picks(values: Values, visual: int, keep: int) -> Indices:
        return best(values[name], keep)

    return picks


def cuts_by_share(visual: int, shares: Mapping[int, float]) -> tuple[Cut, ...]:
    """Return cuts before layers that leave a share of the visual tokens, rounded half to even, at least one.

    Those that would remove nothing are left out.
    """
    cuts: list[Cut] = []
    held = visual
    for before, share in sorted(shares.items()):
        keep = min(held, max(1, round(share * visual))) if share else 0
        if keep < held:
            cuts.append(Cut(before, keep))
            held = keep
    return tuple(cuts)


def scaled(layer: int, layers: int) -> int:
    """Return where a cut before a layer of a model of 32 layers lies in one of ``layers``, 1 to layers - 1."""
    return min(max(1, round(layer * layers / 32)), layers - 1)


def published_shares(
    stages: Mapping[int, float], others: Mapping[int, Mapping[int, float]] = MappingProxyType({})
) -> Callable[[int, int], tuple[Cut, ...]]:
    """Return a :attr:`Method.published`: before a layer of a model of 32 -> which share of the tokens is left.

    ``others`` are those published for other numbers of layers; models of none of these get 32's at the same depths,
    where of cuts that fall on one layer the last one counts.
    """

    def published(layers: int, visual: int) -> tuple[Cut, ...]:
        scaled_stages = {scaled(layer, layers): share for layer, share in stages.items()}
        return cuts_by_share(visual, others.get(layers, scaled_stages))

    return published
