"""Precisions on the command line, and element types of a bundle."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from divprune_edge.errors import UserError, did_you_mean, either
from divprune_edge.manifest import Precision
from divprune_edge.models.precisions import PRECISIONS, PrecisionFacts, Real

GRAPHS = ("vision", "language")
BLOCK_SIZES = (32, 64, 128)
TENSORRT_BLOCK_SIZES = (64, 128)
"""What TensorRT takes for int4, by the page "Quantization Schemes" of its documentation."""
DEFAULT_BLOCK_SIZE = 32
DEFAULT_PRECISION: Precision = "fp32"


@dataclass(frozen=True)
class Precisions:
    """The precision of each graph, the block size of int4 weights, and whether they meet float16 activations."""

    vision: Precision
    language: Precision
    block_size: int = DEFAULT_BLOCK_SIZE
    half: bool = False

    def __str__(self) -> str:
        if self.vision == self.language:
            return self.vision
        return f"vision={self.vision},language={self.language}"

    @property
    def facts(self) -> tuple[PrecisionFacts, PrecisionFacts]:
        """Of the vision graph's precision, and of the language graph's."""
        return PRECISIONS[self.vision], PRECISIONS[self.language]

    @property
    def has_blocks(self) -> bool:
        """Whether any graph has weights in blocks."""
        return any(facts.in_blocks for facts in self.facts)


def activation_type(precision: Precision, *, half: bool = False) -> Real:
    """Return the element type of a graph's activations, and of the weights that are no matrices.

    ``half``: int4 weights meet float16 activations, as in graphs for TensorRT and for CUDA.
    """
    facts = PRECISIONS[precision]
    return facts.on_gpus if half else facts.activations


def check_for_tensorrt(precisions: Precisions, block_size: int | None, dialect: str) -> None:
    """Check that TensorRT can read graphs in ``precisions``, with int4 in blocks as asked for.

    Raises:
        UserError: a precision that it does not run, or blocks of a size that it does not take.
    """
    if precisions.has_blocks and block_size is not None and block_size not in TENSORRT_BLOCK_SIZES:
        raise UserError(
            f"--block-size {block_size} does not go with --dialect {dialect}: TensorRT takes int4 in blocks of "
            f"{either(map(str, TENSORRT_BLOCK_SIZES))}; leave it out for the largest that divides.",
            code="block-size-with-dialect",
        )
    for graph, facts in zip(GRAPHS, precisions.facts, strict=True):
        if "tensorrt" in facts.refusals:
            raise UserError(
                f"--precision {graph}={facts.name} does not go with --dialect {dialect}: {facts.refusals['tensorrt']}; "
                f"choose {graph}=fp16, or int4 for weights alone.",
                code="precision-with-dialect",
            )


def largest_block(widths: Collection[int]) -> int:
    """Return the largest block that TensorRT takes and that divides rows of these widths; none does: the smallest."""
    fitting = [size for size in TENSORRT_BLOCK_SIZES if not any(width % size for width in widths)]
    return max(fitting, default=TENSORRT_BLOCK_SIZES[0])


def parse_precisions(
    text: str, block_size: int | None = None, default: str = DEFAULT_PRECISION
) -> Precisions:
    """Read ``--precision``: one name for both graphs, or by graph as in ``vision=int8,language=int4``.

    A graph that is not named takes its precision of ``default``, in the same notation.

    Raises:
        UserError: an unknown graph or precision, one that is named twice, or another block size.
    """
    block_size = DEFAULT_BLOCK_SIZE if block_size is None else block_size
    if block_size not in BLOCK_SIZES:
        raise UserError(
            f"--block-size {block_size} is not offered: int4 weights come in blocks of "
            f"{either(map(str, BLOCK_SIZES))}.",
            code="block-size-unsupported",
        )
    if "=" not in text:
        name = _known(text, text)
        return Precisions(name, name, block_size)
    chosen: dict[str, Precision] = {}
    for part in text.split(","):
        graph, equals, named = (piece.strip() for piece in part.partition("="))
        if graph not in GRAPHS or not equals:
            raise UserError(
                f"--precision {text} names '{graph}'{did_you_mean(graph, GRAPHS)}: give one precision for both "
                "graphs, or by graph as in vision=int8,language=int4.",
                code="precision-graphs-invalid",
            )
        if graph in chosen:
            raise UserError(
                f"--precision {text} names '{graph}' twice: say once what it is to be.",
                code="precision-graphs-invalid",
            )
        chosen[graph] = _known(named, text)
    if len(chosen) < len(GRAPHS):
        rest = parse_precisions(default)
        chosen = {"vision": rest.vision, "language": rest.language, **chosen}
    return Precisions(chosen["vision"], chosen["language"], block_size)


def _known(name: str, text: str) -> Precision:
    if name not in PRECISIONS:
        raise UserError(
            f"--precision {text} is not known{did_you_mean(name, PRECISIONS)}: choose among "
            f"{', '.join(PRECISIONS)}, for both graphs or as in vision=int8,language=int4.",
            code="precision-unknown",
        )
    return PRECISIONS[name].name
