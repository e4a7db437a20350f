"""A manifest's graphs: those that make visual tokens of pixels, and those that select from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from divprune_edge.manifest.fields import MOST_FRAMES, BundlePath, DType, Per, Positive, Precision, Strict

VISUAL_TOKENS = "visual_tokens"
"""What the tokens are called, as outputs of the vision encoder and inputs of what reads them."""


def tile_input(name: str) -> str:
    """Return what an output of the vision encoder is called as an input of the ``assemble`` graph."""
    return "tile_tokens" if name == VISUAL_TOKENS else f"tile_{name}"


class TensorInfo(Strict):
    """One input or output of a graph; a string in ``shape`` is a symbolic dimension."""

    name: str
    dtype: DType
    shape: tuple[Positive | str, ...]


class GraphInfo(Strict):
    """One ONNX file, with the files of external data that belong to it."""

    file: BundlePath
    data: tuple[BundlePath, ...] = ()
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class SelectorInfo(GraphInfo):
    """A selector graph: ``candidates`` visual tokens in, ``keep`` out.

    ``name`` is the algorithm, ``id`` (``divprune-58``) is unique in the bundle. ``stripped`` is the same graph
    without its model-local function, for TensorRT up to 10.6, where the function would win over the plugin.
    """

    id: str
    name: str
    keep: Positive
    candidates: Positive
    stripped: BundlePath | None = None
    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
    signals: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _budget_fits(self) -> SelectorInfo:
        if self.keep > self.candidates:
            raise ValueError(f"selector '{self.id}' keeps {self.keep} of {self.candidates} tokens")
        return self


class VisionInfo(GraphInfo):
    """The vision encoder: ``tokens`` visual tokens of ``width`` values per tile.

    A row is a token, of ``token_width`` values, and behind it what the language model adds to it after each of its
    first layers; None: the token alone. ``image_height`` and ``image_width`` are a tile's, None where they vary, as the
    number of tokens does then, of which ``tokens`` is the most. ``flops`` are floating-point operations per tile,
    projector included. ``signals`` are those that this checkpoint's encoder can give, whether or not it was exported
    with them. Both are None in bundles of older exports. ``uncut`` is how many tokens there would be if no patches left
    inside the encoder; None: none do. Where they do, the output ``origins`` says which are left, and ``cut`` behind how
    many layers how many go on (bundles of older exports lack it).
    """

    tokens: Positive
    width: Positive
    image_height: Positive | None
    image_width: Positive | None
    precision: Precision
    flops: Positive | None = None
    signals: tuple[str, ...] | None = None
    token_width: Positive | None = None
    uncut: Positive | None = None
    cut: tuple[Positive, Positive] | None = None

    @property
    def looked_at(self) -> int:
        """D: values of a row that selectors look at."""
        return self.token_width or self.width


class AssembleInfo(GraphInfo):
    """What makes an image's rows of the tokens of its tiles; in bundles whose images are cut into tiles.

    There are ``rows`` of them, N, each of ``sources`` tokens, of at most ``tiles`` tiles; a clip's frames, at most
    ``frames`` as the encoder takes them, are tiles as well. Selectors pick from all rows of an image or clip at once,
    or from those of each tile, or of each frame of a clip, as ``per`` says.
    """

    rows: Positive
    sources: Positive
    tiles: Positive
    frames: Annotated[int, Field(ge=0, le=MOST_FRAMES)] = 0
    per: Per = "image"
