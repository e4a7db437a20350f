"""A schedule as a chain of graphs: which layers each has, what it reads of them, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

from divprune_edge.errors import UserError
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.schedules.method import Method, Watch
from divprune_edge.models.schedules.schedule import Schedule


@dataclass(frozen=True)
class Part:
    """A graph of a chain: ``layers`` layers from number ``first`` on.

    Attributes:
        readings: what is read of them at the cut behind, and of which layer; of a watch that sums, once for each.
        projected: of the layer behind the cut this graph has the projections, as the watch is of what they give: it
            hands on queries, keys and values with the hidden states, so that no weight is in two graphs.
        begins_projected: the graph before it does so.
        last: it gives logits.
    """

    first: int
    layers: int
    readings: tuple[tuple[Watch, int], ...] = ()
    projected: bool = False
    begins_projected: bool = False
    last: bool = True

    @property
    def numbers(self) -> range:
        """The layers' numbers."""
        return range(self.first, self.first + self.layers)

    def width(self, decoder: DecoderSpec, at: int) -> int:
        """Return how many values of a token come in (``at`` 0) or are handed on (1)."""
        if not (self.begins_projected, self.projected)[at]:
            return decoder.hidden
        return decoder.hidden + decoder.head_dim * (decoder.heads + 2 * decoder.kv_heads)

    def watches(self, layer: int) -> tuple[Watch, ...]:
        """Return what is read of one layer."""
        return tuple(watch for watch, number in self.readings if number == layer)


def whole(layers: int) -> Part:
    """Return the one part of a model that is not cut."""
    return Part(0, layers)


def parts_of(schedule: Schedule, method: Method, layers: int) -> tuple[Part, ...]:
    """Return the chain for a model of so many layers.

    Raises:
        UserError: a watched layer lies before the cut in front of the one that it is for.
    """
    begins = (0, *(cut.before for cut in schedule.cuts))
    ends = (*begins[1:], layers)
    parts: list[Part] = []
    for first, end in zip(begins, ends, strict=True):
        last = end == layers
        readings: list[tuple[Watch, int]] = []
        for watch in () if last else method.watches:
            if watch.summed:
                readings += [(watch, layer) for layer in range(max(first, schedule.since), end)]
                continue
            layer = end - 1 + watch.offset
            if layer < first:
                raise UserError(
                    f"The schedule '{schedule.method}' reads layer {layer} for its cut before layer {end}, but the cut "
                    f"before that is before layer {first}: leave {1 - watch.offset} layers or more between two cuts.",
                    code="schedule-layer",
                )
            readings.append((watch, layer))
        projected = any(layer == end for _, layer in readings)
        before = bool(parts) and parts[-1].projected
        parts.append(Part(first, end - first, tuple(readings), projected, before, last))
    return tuple(parts)
