"""A manifest's language model: what the generation loop must know of it, and its schedule where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from divprune_edge.manifest.fields import Dialect, DType, Numbering, Positive, Precision, Strict
from divprune_edge.manifest.graphs import VISUAL_TOKENS, GraphInfo, TensorInfo


class LanguageCost(Strict):
    """What one step of the language model costs: floating-point operations, and bytes of weights that it reads.

    ``token_flops`` per new token, ``pair_flops`` per pair of a new token and one that it sees, ``logits_flops`` once.
    ``weight_bytes`` leaves out an embedding table that is only looked up.
    """

    token_flops: Positive
    pair_flops: Positive
    logits_flops: Positive
    weight_bytes: Positive


@dataclass(frozen=True)
class LayerGroup:
    """Neighbouring layers whose KV caches hold the same rows: ``layers`` of them from number ``first`` on.

    ``capacity`` is as in :class:`LanguageInfo`, of these layers' caches. ``fewer`` is how many tokens of an image leave
    before them, where it has as many visual tokens as may be.
    """

    first: int
    layers: int
    capacity: int | None
    fewer: int = 0

    @property
    def cache_tensors(self) -> tuple[str, ...]:
        """What the cache's inputs and outputs are called behind their prefix: key and value of each layer."""
        numbers = range(self.first, self.first + self.layers)
        return tuple(f"{layer}.{part}" for layer in numbers for part in ("key", "value"))

    def room(self, context: int) -> int:
        """Return how many rows of its cache a sequence may fill in a model of that context."""
        return min(context, self.capacity or context)

    def rows(self, tokens: int) -> int:
        """Return how many of a sequence's tokens are in these layers' caches, if one image is among them."""
        return max(1, tokens - self.fewer)


class CutInfo(Strict):
    """From layer ``before`` on, counted from 0, ``keep`` visual tokens of an image remain, or all of one with fewer."""

    before: Positive
    keep: Annotated[int, Field(ge=0)]


class ScheduleInfo(Strict):
    """Where visual tokens leave inside the language model; see ``models.schedules``.

    ``visual_tokens`` of an image enter the first layer, at most. ``numbering`` says whether positions are counted anew
    after each cut or stay. ``since`` is the first layer that a method which sums over layers adds.
    """

    method: str
    visual_tokens: Positive
    numbering: Numbering
    since: Annotated[int, Field(ge=0)] = 0
    cuts: Annotated[tuple[CutInfo, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _cuts_fit(self) -> ScheduleInfo:
        keeps = (self.visual_tokens, *(cut.keep for cut in self.cuts))
        befores = (0, *(cut.before for cut in self.cuts))
        if any(a <= b for a, b in pairwise(keeps)) or any(a >= b for a, b in pairwise(befores)):
            raise ValueError("each cut lies behind the one before it and keeps fewer visual tokens")
        return self

    @property
    def keeps(self) -> tuple[int, ...]:
        """Visual tokens of an image in each group of layers, at most."""
        return (self.visual_tokens, *(cut.keep for cut in self.cuts))

    def spared(self, visual: float) -> str | None:
        """Return what there is to say of an image of so few visual tokens that a cut removes none; None: each does."""
        first = next((cut for cut in self.cuts if cut.keep < visual), None)
        if first is None:
            return f"no cut of the schedule removes any of {visual:.0f} visual tokens"
        if first is self.cuts[0]:
            return None
        return f"of {visual:.0f} visual tokens the schedule removes some from layer {first.before} on alone"

    def __str__(self) -> str:
        """Return it in one line: ``fastv: of 576 visual tokens 288 from layer 2 on``."""
        cuts = ", ".join(f"{cut.keep} from layer {cut.before} on" for cut in self.cuts)
        return f"{self.method}: of {self.visual_tokens} visual tokens {cuts}"


class SegmentInfo(GraphInfo):
    """A graph of a chain: the ``layers`` layers from number ``first`` on, with a cache of ``capacity`` rows.

    ``capacity`` is None where it grows.
    """

    first: Annotated[int, Field(ge=0)]
    layers: Positive
    capacity: Positive | None = None


class LanguageInfo(GraphInfo):
    """The language model and what the generation loop must know of it.

    With a ``schedule`` it is a chain of graphs, ``segments``, the first of which this entry names as well.

    ``embedding_rows`` is V of the token table: id V + i is row i of ``visual_tokens``. ``vocabulary`` is the
    number of logits. ``context`` counts tokens of one sequence, visual ones included. ``capacity`` is the number
    of rows of a KV cache whose size is part of the graph; None where the cache grows. ``window`` is how many positions
    a token sees, its own included, where whoever makes the masks must know. ``cost`` is None in bundles of older
    exports.
    """

    precision: Precision
    dialect: Dialect
    layers: Positive
    kv_heads: Positive
    head_dim: Positive
    cache_dtype: DType
    embedding_rows: Positive
    vocabulary: Positive
    context: Positive
    capacity: Positive | None = None
    window: Positive | None = None
    cost: LanguageCost | None = None
    schedule: ScheduleInfo | None = None
    segments: tuple[SegmentInfo, ...] = ()

    @model_validator(mode="after")
    def _segments_fit(self) -> LanguageInfo:
        if self.schedule is None:
            if self.segments:
                raise ValueError("the language model has segments, but no schedule")
            return self
        firsts = [0, *(cut.before for cut in self.schedule.cuts)]
        ends = [*firsts[1:], self.layers]
        if [(one.first, one.first + one.layers) for one in self.segments] != list(
            zip(firsts, ends, strict=True)
        ):
            raise ValueError("the segments are not the layers between the schedule's cuts")
        first = self.segments[0]
        if (self.file, self.inputs, self.capacity) != (first.file, first.inputs, first.capacity):
            raise ValueError("the language model's own entry is not its first segment's")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the schedule out where there is none, so that such a bundle is the same as ever."""
        data: dict[str, Any] = handler(self)
        if self.schedule is None:
            del data["schedule"], data["segments"]
        return data

    @property
    def graphs(self) -> tuple[GraphInfo, ...]:
        """What a step runs, in order."""
        return self.segments or (self,)

    def segment(self, index: int) -> LanguageInfo:
        """Return one graph of the chain as if it were a language model of its layers alone."""
        one = self.segments[index]
        return self.model_copy(
            update={
                **{name: getattr(one, name) for name in (*GraphInfo.model_fields, "layers", "capacity")},
                "schedule": None,
                "segments": (),
            }
        )

    @property
    def parts(self) -> tuple[LanguageInfo, ...]:
        """Return its graphs in order, each as :meth:`segment` does; itself where it is one."""
        return tuple(self.segment(index) for index in range(len(self.segments))) or (self,)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """All layers, in order; one group where every token passes all of them."""
        if self.schedule is not None:
            return tuple(
                LayerGroup(one.first, one.layers, one.capacity, self.schedule.visual_tokens - keep)
                for one, keep in zip(self.segments, self.schedule.keeps, strict=True)
            )
        return (LayerGroup(0, self.layers, self.capacity),)

    def group_tokens(self, tokens: int, images: Sequence[int]) -> tuple[int, ...]:
        """Return how many of a sequence's tokens are in each group; ``images`` are the visual tokens of each image.

        All of them enter the first one, also those of an image that has more than the schedule is made for.
        """
        if self.schedule is None:
            return (tokens,)
        cuts = (tokens - sum(max(0, n - cut.keep) for n in images) for cut in self.schedule.cuts)
        return (tokens, *cuts)

    def room_for_answer(self, tokens: int, images: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt of so many, with images of so many visual tokens each."""
        held = self.group_tokens(tokens, images)
        return min(group.room(self.context) - n for group, n in zip(self.groups, held, strict=True))

    @property
    def axes(self) -> int:
        """Positions of a token: one, or time, height and width."""
        found = [one.shape for one in self.inputs if one.name == "position_ids"]
        return 3 if found and len(found[0]) == 3 else 1

    @property
    def says_next(self) -> bool:
        """Whether the graph says which id is the next one in greedy decoding."""
        return any(tensor.name == "next_id" for tensor in self.graphs[-1].outputs)

    @property
    def gives_logits(self) -> bool:
        """Whether this graph does: of a chain, the last one."""
        return any(tensor.name == "logits" for tensor in self.outputs)

    @property
    def takes_ids(self) -> bool:
        """Whether this graph does: of a chain, the first one."""
        return any(tensor.name == VISUAL_TOKENS for tensor in self.inputs)

    @property
    def visual(self) -> TensorInfo:
        """The input that takes the visual tokens."""
        return next(tensor for tensor in self.inputs if tensor.name == VISUAL_TOKENS)

    @property
    def positions(self) -> int:
        """Tokens of one sequence that there is room for, prompt and answer together: all pass the first layers."""
        return self.groups[0].room(self.context)


def larger_capacity(info: LanguageInfo) -> str:
    """Return the end of a remedy where a larger KV cache is one: not where the model's own context is the limit."""
    return ", or export with a larger --capacity" if info.positions < info.context else ""
