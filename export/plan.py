"""What one export will do: a checkpoint and the decisions about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.dialects import Dialect
from divprune_edge.export.formats import Format, Moments, find_format
from divprune_edge.export.precision import Precisions, activation_type
from divprune_edge.export.prompt_facts import PromptFacts
from divprune_edge.ids import Ids
from divprune_edge.manifest import Numbering, Per, Precision, Preprocessing
from divprune_edge.models.families.family import Family, Spec, WeightNames
from divprune_edge.models.files import Shapes
from divprune_edge.models.schedules import Schedule, find_method
from divprune_edge.models.schedules.parts import Part, parts_of, whole
from divprune_edge.models.selectors import Selector
from divprune_edge.models.targets import find_target
from divprune_edge.models.tiles import candidates_of, picks_of

ROWS_STEP = 8


@dataclass(frozen=True)
class ExportPlan:
    """A checkpoint and the decisions about it. Everything the user can get wrong has been checked."""

    checkpoint: Checkpoint
    family: Family[Any]
    spec: Spec
    names: WeightNames
    preprocessing: Preprocessing
    prompt: PromptFacts
    precisions: Precisions
    dialect: type[Dialect]
    selector: Selector
    keep: int
    signals: tuple[str, ...] = ()
    capacity: int | None = None
    target: str | None = None
    per: Per = "image"
    numbering: Numbering = "compact"
    greedy: bool = False
    moments: Moments = field(default_factory=dict)
    schedule: Schedule | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model's graphs; one where nothing is pruned inside it."""
        layers = self.spec.decoder.layers
        if self.schedule is None:
            return (whole(layers),)
        return parts_of(self.schedule, find_method(self.schedule.method), layers)

    @property
    def capacities(self) -> tuple[int | None, ...]:
        """Rows of each graph's KV cache where they are part of it: what a cut removes from an image takes none.

        Rounded up, so that the caches of several slots begin where TensorRT can bind them.
        """
        if self.capacity is None:
            return (None,) * len(self.parts)
        rows = (-(-(self.capacity - fewer) // ROWS_STEP) * ROWS_STEP for fewer in self.fewer)
        return (self.capacity, *(min(self.capacity, one) for one in [*rows][1:]))

    @property
    def fewer(self) -> tuple[int, ...]:
        """How many visual tokens of an image leave before each graph."""
        if self.schedule is None:
            return (0,)
        return tuple(self.schedule.visual - keep for keep in self.schedule.keeps)

    @property
    def all_enter(self) -> bool:
        """Whether all visual tokens enter the language model, and are pruned inside of it alone."""
        return self.schedule is not None and self.keep == self.candidates

    @property
    def candidates(self) -> int:
        """N: rows that a selector picks from."""
        return candidates_of(self.spec, self.per)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens that the language model sees of an image, at most."""
        return self.keep * picks_of(self.spec, self.per)

    @property
    def sources(self) -> int:
        """Tokens of tiles that a row is made of, at most."""
        return 1 if self.spec.rows is None else self.spec.rows.sources

    @property
    def token_dtype(self) -> str:
        """Element type of visual tokens: what the vision encoder computes in."""
        return activation_type(self.precisions.vision, half=self.precisions.half)

    @property
    def language_dtype(self) -> str:
        """Element type of the language model's activations and cache."""
        return activation_type(self.precisions.language, half=self.precisions.half)

    @property
    def forbidden(self) -> Ids | None:
        """Ids that the graph never says to be the next; None where it says none."""
        return Ids(self.prompt.entry.forbidden_ids) if self.greedy else None

    def language_dialect(self, part: int = 0) -> Dialect:
        """Return a dialect for the language graph, or for one of a chain."""
        return self.dialect(self.capacities[part])

    @property
    def positions(self) -> int:
        """Tokens of one sequence that there is room for."""
        return min(self.spec.decoder.context, self.capacity or self.spec.decoder.context)

    @property
    def least_positions(self) -> int:
        """The same, where none of them leaves inside the language model."""
        return min(
            self.spec.decoder.context, *(rows or self.spec.decoder.context for rows in self.capacities)
        )

    @property
    def fuses_encoder(self) -> bool:
        """Whether the encoder's attention is one operator of ONNX Runtime's own.

        Always for CUDA; for CPUs where images are of any size: at few patches it is hardly faster than the graph that
        is written out, but at 7,744 that one holds 4 GB of scores.
        """
        any_size = self.preprocessing.patches is not None
        return bool(self.dialect.domains) and (is_for_cuda(self.target) or any_size)

    def vision_format(self) -> Format:
        """Return a format for the vision graph."""
        return self._format(self.precisions.vision)

    def language_format(self) -> Format:
        """Return a format for the language graph."""
        return self._format(self.precisions.language)

    @property
    def embedding_rows(self) -> int:
        """V of the token table."""
        return self.checkpoint.rows(f"{self.names.decoder}embed_tokens.weight")

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.checkpoint.rows(self.names.head)

    def _format(self, precision: Precision) -> Format:
        return find_format(
            precision,
            self.precisions.block_size,
            fused=bool(self.dialect.domains),
            half=self.precisions.half,
            moments=self.moments,
        )

    @cached_property
    def graph_bytes(self) -> tuple[int, int]:
        """Sizes in bytes of the weights of the vision and the language graph in the chosen precisions."""
        sizes = []
        for format, shapes in self._graphs():
            size = 0
            for name, shape in shapes.items():
                if is_matrix(name, shape):
                    size += format.stored_bytes(shape, head=name == self.names.head)
                else:
                    size += int(np.prod(shape)) * np.dtype(format.dtype).itemsize
            sizes.append(size)
        if self.has_second_head:
            sizes[1] += self.language_format().stored_bytes(
                (self.vocabulary, self.spec.decoder.hidden), head=True
            )
        return sizes[0], sizes[1]

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of all exported weights in the chosen precisions."""
        return sum(self.graph_bytes)

    @property
    def has_second_head(self) -> bool:
        """Whether a tied head is stored twice: as embedding, and in few bits or in another graph of a chain."""
        return self.names.tied and (self.language_format().quantises_head or self.schedule is not None)

    def check_formats(self) -> None:
        """Check that every matrix can be stored as planned.

        Raises:
            UserError: the first one that cannot.
        """
        for format, shapes in self._graphs():
            for name, shape in shapes.items():
                if is_matrix(name, shape):
                    format.check(name, shape)

    @property
    def block_widths(self) -> set[int]:
        """Row widths of the matrices that are stored in blocks."""
        return {
            shape[1]
            for facts, (_, shapes) in zip(self.precisions.facts, self._graphs(), strict=True)
            if facts.in_blocks
            for name, shape in shapes.items()
            if is_matrix(name, shape)
        }

    def _graphs(self) -> list[tuple[Format, Shapes]]:
        """Return each graph's format and the weights in it."""
        shapes = self.names.parameters(self.spec, self.embedding_rows, self.vocabulary)
        seen = {n: s for n, s in shapes.items() if self.names.in_encoder(n)}
        said = {n: s for n, s in shapes.items() if n not in seen}
        return [(self.vision_format(), seen), (self.language_format(), said)]


def is_for_cuda(target: str | None) -> bool:
    """Whether a target runs graphs in ONNX Runtime on a GPU."""
    return target is not None and find_target(target).backend == "cuda"


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is the matrix of a linear layer, which a format may quantise: embeddings are not."""
    return len(shape) == 2 and "embed" not in name
