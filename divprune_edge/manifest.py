"""``manifest.json``: what a bundle holds, checked against a schema before any of it is opened.

The export writes it, the runtime reads it; everything the runtime needs to know about a checkpoint is here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from divprune_edge.errors import UserError
from divprune_edge.ids import MOST_IDS, Ids
from divprune_edge.strict_json import is_file, is_folder, read_json

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
DEMO = "demo"
"""``Source.model`` of the bundled checkpoint, which is exported where none is given."""
RESTORE = "copy the bundle again from where it is whole, or export it again"
"""What to do about a file that is missing or is not the one that was exported."""
VISUAL_TOKENS = "visual_tokens"
"""What the tokens are called, as outputs of the vision encoder and inputs of what reads them."""
TILES_AT_ONCE = 8
DEFAULT_TEMPLATE = "the family's default"
"""``Prompt.template_source`` where a checkpoint brings no template."""
UNPRUNED = "none"
"""The selector name that stands for handing every visual token to the language model."""

MOST_FRAMES = 768
"""Of a clip."""
_MOST_TILES, MOST_PIXELS = 100, 64_000_000
"""Bounds on what an image may be made to fill."""
MOST_SIZES = 32
"""Bound on the sizes that images of any size may be resized to: an engine has a profile for each."""

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
"""How the weight matrices of a graph are stored. int8 and int4 compute everything else in float32, but int4 for
TensorRT (dialects ``static`` and ``decomposed``) in float16."""
Dialect = Literal["portable", "onnxruntime", "static", "decomposed"]
"""How attention and its cache are written; see ``export.dialects``."""


def tile_input(name: str) -> str:
    """Return what an output of the vision encoder is called as an input of the ``assemble`` graph."""
    return "tile_tokens" if name == VISUAL_TOKENS else f"tile_{name}"


def _inside(path: str) -> str:
    """Refuse a path that is not a plain relative one: absolute, with ``..``, a drive, a backslash."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise ValueError(f"path '{path}' leaves the bundle folder")
    return path


def _ids(value: Any) -> Ids:
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list of ids and ranges [first, last]")
    return Ids(value)


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("is not a sha256 in hexadecimal")
    return value


ForbiddenIds = Annotated[
    Ids,
    PlainValidator(lambda value: value if isinstance(value, Ids) else _ids(value)),
    PlainSerializer(Ids.entries),
]
"""Ids that are ranges, in JSON and here."""
BundlePath = Annotated[str, AfterValidator(_inside)]
Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]
Positive = Annotated[int, Field(gt=0, lt=1 << 62)]


class Strict(BaseModel):
    """What a file of ours holds: it cannot be changed, and a field that it does not know is refused."""

    # A manifest's schema holds those of all others: to build each by itself, too, would slow every start.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


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
    parameters: dict[str, bool | int | float | str] = {}
    signals: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _budget_fits(self) -> SelectorInfo:
        if self.keep > self.candidates:
            raise ValueError(f"selector '{self.id}' keeps {self.keep} of {self.candidates} tokens")
        return self


class LanguageCost(Strict):
    """What one step of the language model costs: floating-point operations, and bytes of weights that it reads.

    ``token_flops`` per new token, ``pair_flops`` per pair of a new token and one that it sees, ``logits_flops`` once.
    ``weight_bytes`` leaves out an embedding table that is only looked up.
    """

    token_flops: Positive
    pair_flops: Positive
    logits_flops: Positive
    weight_bytes: Positive


class VisionInfo(GraphInfo):
    """The vision encoder: ``tokens`` visual tokens of ``width`` values per tile.

    A row is a token, of ``token_width`` values, and behind it what the language model adds to it after each of its
    first layers; None: the token alone. ``image_height`` and ``image_width`` are a tile's, None where they vary, as the
    number of tokens does then, of which ``tokens`` is the most. ``flops`` are floating-point operations per tile,
    projector included. ``signals`` are those that this checkpoint's encoder can give, whether or not it was exported
    with them. Both are None in bundles of older exports. ``uncut`` is how many tokens there would be if no patches left
    inside the encoder; None: none do. Where they do, the output ``origins`` says which are left.
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
    per: Literal["image", "tile", "frame"] = "image"


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
    numbering: Literal["compact", "original"]
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
    def groups(self) -> tuple[LayerGroup, ...]:
        """All layers, in order; one group where every token passes all of them."""
        if self.schedule is not None:
            return tuple(
                LayerGroup(one.first, one.layers, one.capacity, self.schedule.visual_tokens - keep)
                for one, keep in zip(self.segments, self.schedule.keeps, strict=True)
            )
        return (LayerGroup(0, self.layers, self.capacity),)

    def group_tokens(self, tokens: int, images: Sequence[int]) -> tuple[int, ...]:
        """Return how many of a sequence's tokens are in each group; ``images`` are the visual tokens of each image."""
        if self.schedule is None:
            return (tokens,)
        return tuple(tokens - sum(max(0, n - keep) for n in images) for keep in self.schedule.keeps)

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


Grids = Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1, max_length=1000)]


class Tiling(Strict):
    """How an image becomes several tiles ("anyres"), and what becomes of their features.

    ``grids`` are the sizes (height, width) in pixels that an image may be fitted into, in the checkpoint's order, which
    decides ties. A tile has ``tile`` pixels and ``side`` features a side. Features that would fill more than 1.1² *
    ``max_tiles`` tiles are shrunk; None: never. ``several`` is what an image becomes where a prompt has several: its
    own tiles too, or its ``base`` alone.
    """

    grids: Grids
    tile: Positive
    side: Annotated[int, Field(gt=0, le=128)]
    max_tiles: Positive | None = None
    several: Literal["tiles", "base"]

    @model_validator(mode="after")
    def _grids_fit(self) -> Tiling:
        if 2 * self.side > self.tile:
            raise ValueError(f"a tile of {self.tile} pixels a side has {self.side} features a side")
        for height, width in self.grids:
            if height % self.tile or width % self.tile:
                raise ValueError(f"grid {height} x {width} is not made of tiles of {self.tile} x {self.tile}")
            tiles = (height // self.tile) * (width // self.tile)
            if tiles > _MOST_TILES or height * width > MOST_PIXELS:
                raise ValueError(
                    f"grid {height} x {width} has {tiles} tiles of {self.tile} x {self.tile}, at most {_MOST_TILES} "
                    f"and {MOST_PIXELS} pixels are allowed"
                )
        return self


class Patches(Strict):
    """How an image becomes patches, as many as it has room for, and what its encoder is told of their grid.

    It is resized to multiples of ``patch`` * ``merge`` pixels a side that make ``min_pixels`` to ``max_pixels``. A
    patch is ``patch`` pixels a side, ``merge`` of them a side are one visual token, and it holds ``temporal`` frames,
    all the same. ``places`` are those a side of the encoder's grid of learned positions, ``window`` the visual tokens a
    side of its windows of attention; None where it has none. With ``sizes`` (height, width), in pixels, it is resized
    to the nearest of these, the earlier one of two that are as near, whatever its own.
    """

    patch: Annotated[int, Field(gt=0, le=64)]
    merge: Annotated[int, Field(gt=0, le=8)]
    temporal: Annotated[int, Field(gt=0, le=4)]
    min_pixels: Positive
    max_pixels: Annotated[int, Field(gt=0, le=MOST_PIXELS)]
    places: Annotated[int, Field(gt=0, le=1024)] | None = None
    window: Annotated[int, Field(gt=0, le=64)] | None = None
    sizes: Annotated[tuple[tuple[Positive, Positive], ...], Field(max_length=MOST_SIZES)] = ()

    @model_validator(mode="after")
    def _pixels_fit(self) -> Patches:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"images have at least {self.min_pixels} and at most {self.max_pixels} pixels")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Patches:
        for height, width in self.sizes:
            if height % self.factor or width % self.factor:
                raise ValueError(
                    f"size {height} x {width} is not made of visual tokens of {self.factor} pixels"
                )
            if height * width > self.max_pixels:
                raise ValueError(f"size {height} x {width} has more than {self.max_pixels} pixels")
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError("a size is there twice")
        return self

    @property
    def factor(self) -> int:
        """Pixels of a visual token a side."""
        return self.patch * self.merge


class Preprocessing(Strict):
    """Facts of the image processor; all of it happens on the host except rescale, mean and std.

    ``resize`` is ``shortest_edge`` (keeps the aspect ratio; with ``longest_edge`` smaller where the other edge would
    exceed that) or ``exact`` (to ``resize_height`` x ``resize_width``) or ``area`` (as ``patches`` says; see
    ``processing.patches``) or ``none``; ``crop_*`` is a centre crop (zero padding where the image is smaller), or
    None. ``pad_to_square`` pads with the mean colour first. ``resample`` is Pillow's filter number. With
    ``tiling`` all of this happens to each tile; see ``processing.anyres``. ``clips`` is None where there are none.
    """

    resize: Literal["shortest_edge", "exact", "area", "none"]
    resize_height: Positive | None = None
    resize_width: Positive | None = None
    shortest_edge: Positive | None = None
    longest_edge: Positive | None = None
    resample: Annotated[int, Field(ge=0, le=5)]
    crop_height: Positive | None = None
    crop_width: Positive | None = None
    pad_to_square: bool = False
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tiling: Tiling | None = None
    patches: Patches | None = None
    clips: Clips | None = None

    @model_validator(mode="after")
    def _patches_fit(self) -> Preprocessing:
        if (self.resize == "area") != (self.patches is not None):
            raise ValueError("an image is resized to an area where it becomes patches, and nowhere else")
        if self.patches is not None and (
            self.pad_to_square or self.crop_height or self.crop_width or self.tiling
        ):
            raise ValueError("an image that becomes patches is not padded, cropped or tiled")
        return self

    @model_validator(mode="after")
    def _tiles_fit(self) -> Preprocessing:
        if self.tiling is None:
            return self
        if self.pad_to_square or self.resize == "none":
            raise ValueError("an image that is tiled is resized, and not padded to a square first")
        made: tuple[int | None, int | None] = (self.crop_height, self.crop_width)
        if None in made:
            edge = min(self.shortest_edge or 0, self.longest_edge or self.shortest_edge or 0)
            made = (self.resize_height, self.resize_width) if self.resize == "exact" else (edge, edge)
        if made != (self.tiling.tile, self.tiling.tile):
            raise ValueError(
                f"tiles of {self.tiling.tile} x {self.tiling.tile} pixels become {made[0]} x {made[1]}"
            )
        return self


class Clips(Strict):
    """Which frames of a clip are looked at, and what becomes of them; in bundles that take clips.

    At most ``frames`` are looked at: ``count`` of them, or ``fps`` a second, at least ``min_frames`` and at most
    ``max_frames``. ``sampling`` spreads them ``even``-ly from the first on, in ``steps`` of whole patches, or from the
    first to the last one (``ends``). ``frame`` is what happens to each.

    Where frames become patches, their size goes by the clip's length, too: the bounds of its ``patches`` are those of a
    frame, or of all frames together (``whole``); ``cap`` bounds visual tokens as the checkpoint's processor may, of
    the whole clip or, with ``whole``, of a frame; a clip makes at most ``tokens``. A patch's place in time is counted
    in ``tokens_per_second``; None: each frame stands by itself, with its time written before it.
    """

    frames: Annotated[int, Field(gt=0, le=MOST_FRAMES)]
    frame: Preprocessing
    sampling: Literal["even", "steps", "ends"]
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    count: Positive | None = None
    min_frames: Positive = 1
    max_frames: Positive = MOST_FRAMES
    whole: bool = False
    cap: Positive | None = None
    tokens: Annotated[int, Field(gt=0, le=1 << 18)] | None = None
    tokens_per_second: Annotated[float, Field(gt=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _frames_fit(self) -> Clips:
        if self.fps is None and self.count is None:
            raise ValueError("nothing says how many frames are looked at")
        if self.frame.tiling is not None or self.frame.clips is not None:
            raise ValueError("a frame is not cut into tiles, and no clip")
        if (self.tokens is None) != (self.frame.patches is None):
            raise ValueError("a clip's tokens are bounded where its frames become patches, and nowhere else")
        if self.sampling == "steps" and self.step > self.frames:
            raise ValueError(f"a patch has {self.step} frames, but {self.frames} are looked at")
        return self

    @property
    def depth(self) -> int:
        """Frames that the encoder takes together."""
        return self.frame.patches.temporal if self.frame.patches is not None else 1

    @property
    def step(self) -> int:
        """What the number of frames looked at is a multiple of."""
        return self.depth if self.sampling == "steps" else 1


class GenerationDefaults(Strict):
    """How the checkpoint would have its answers decoded: what its ``generation_config.json`` says, used where asked.

    None where it says nothing. ``unsupported`` are settings that this runtime has no counterpart of, as they stand.
    The ids that end an answer are the prompt's ``stop_ids``.
    """

    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Positive | None = None
    stop: tuple[str, ...] = ()
    unsupported: dict[str, Any] = {}

    def __str__(self) -> str:
        """Return the settings in one line, those without a counterpart marked."""
        stated = self.model_dump(exclude={"unsupported"}, exclude_none=True, exclude_defaults=True)
        shown = [f"{name} {value}" for name, value in stated.items()]
        return ", ".join(
            [*shown, *(f"{name} {value} (not supported)" for name, value in self.unsupported.items())]
        )


class Prompt(Strict):
    """How text becomes ids: ``tokenizer.json``, a chat template, and the ids with a meaning.

    ``forbidden_ids`` are never sampled: the placeholders of images and clips, and rows without a token; ``video_token``
    is None where there are no clips. ``template_source`` says which file of the checkpoint the template came from, or
    that it is the family's default; None in bundles of older exports, as ``generation`` is.
    """

    tokenizer: BundlePath
    chat_template: BundlePath
    image_token: str
    image_token_id: Id
    video_token: str | None = None
    video_token_id: Id | None = None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    stop_ids: tuple[Id, ...]
    forbidden_ids: ForbiddenIds
    template_source: str | None = None
    generation: GenerationDefaults | None = None


class AdapterSource(Strict):
    """A LoRA adapter that was merged: its folder's name, the base that it names, and the sha256 of its weights."""

    name: str
    base: str | None
    sha256: Annotated[str, AfterValidator(_sha256)]


class Source(Strict):
    """Where the weights came from. ``model`` is a hub id or a folder's name, never an absolute path.

    ``adapter`` was merged into them; None where there was none.
    """

    model: str
    revision: str | None
    licence: str | None
    config_sha256: Annotated[str, AfterValidator(_sha256)]
    adapter: AdapterSource | None = None

    @property
    def export_command(self) -> str:
        """The command that exports this checkpoint anew; where a folder lay is not known and left to the reader."""
        more = f" --adapter PATH/{self.adapter.name}" if self.adapter is not None else ""
        if self.model == DEMO:
            return f"python -m export llava{more}"
        return f"python -m export llava --model {self.model if '/' in self.model else f'PATH/{self.model}'}{more}"


class Check(Strict):
    """One line of the verification table: ``value`` against ``limit`` in ``unit``."""

    stage: str
    name: str
    value: float
    limit: float | None
    unit: str
    passed: bool
    detail: str = ""


class Verification(Strict):
    """Whether the graphs were compared with PyTorch, how deep, and with what result."""

    status: Literal["verified", "not verified"]
    reason: str = ""
    language_layers: int | None = None
    checks: tuple[Check, ...] = ()


class FileInfo(Strict):
    """Size in bytes and sha256 of one file of the bundle."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, AfterValidator(_sha256)]


class Manifest(Strict):
    """The whole manifest. ``files`` lists every file of the bundle except the manifest itself.

    ``precision`` sums up the graphs' own: one name, or ``vision=int8,language=int4``. ``block_size`` is that of
    the int4 graphs' weights, None where there are none; ``calibrated`` says that the language model's were rounded
    by what its layers read, not to the nearest. ``target`` is the device of ``models.targets`` that the bundle was
    made for, if one was named. ``numbering`` says whether what is left of a prompt's images is numbered anew, without a
    gap, or keeps the positions that it would have unpruned.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    family: str
    precision: str
    block_size: Positive | None = None
    calibrated: bool = False
    target: str | None = None
    token_dtype: DType
    numbering: Literal["compact", "original"] = "compact"
    vision_encoder: VisionInfo
    assemble: AssembleInfo | None = None
    selectors: tuple[SelectorInfo, ...]
    default_selector: str
    language_model: LanguageInfo
    preprocessing: Preprocessing
    prompt: Prompt
    source: Source
    verification: Verification
    tools: dict[str, str]
    files: dict[BundlePath, FileInfo]

    @property
    def encoder_input(self) -> tuple[Preprocessing, tuple[int, int] | None]:
        """How an image becomes the vision encoder's input, and the height and width of a tile, None where they vary."""
        height, width = self.vision_encoder.image_height, self.vision_encoder.image_width
        return self.preprocessing, None if height is None or width is None else (height, width)

    @property
    def features(self) -> GraphInfo:
        """The graph whose outputs selectors read."""
        return self.assemble or self.vision_encoder

    @property
    def candidates(self) -> int:
        """N: rows that a selector picks from."""
        return self.assemble.rows if self.assemble else self.vision_encoder.tokens

    @property
    def tiles_at_once(self) -> int:
        """Tiles of an image that one run of the encoder takes: its memory grows with them, its speed hardly.

        One where they are of any size, as the largest image is.
        """
        many = self.assemble is not None and self.vision_encoder.image_height is not None
        return min(TILES_AT_ONCE, self.assemble.tiles) if self.assemble and many else 1

    @property
    def groups(self) -> int:
        """How often a selector picks from an image or a clip, at most."""
        if self.assemble is None or self.assemble.per == "image":
            return 1
        return self.assemble.tiles if self.assemble.per == "tile" else max(self.assemble.frames, 1)

    def visual_tokens(self, selector: SelectorInfo | None) -> int:
        """Return how many visual tokens the language model sees of an image, at most; None is no pruning."""
        return self.groups * (selector.keep if selector is not None else self.candidates)

    @property
    def seeing(self) -> list[GraphInfo]:
        """The graphs that make candidates of pixels, in their order."""
        return [self.vision_encoder, *([self.assemble] if self.assemble else [])]

    @model_validator(mode="after")
    def _names_agree(self) -> Manifest:
        ids = [selector.id for selector in self.selectors]
        if len(set(ids)) != len(ids):
            raise ValueError("two selectors share one id")
        if self.default_selector not in [*ids, UNPRUNED]:
            raise ValueError(f"default selector '{self.default_selector}' is not in the bundle")
        given = {output.name for output in self.features.outputs}
        for selector in self.selectors:
            for signal in selector.signals:
                if signal not in given:
                    raise ValueError(
                        f"selector '{selector.id}' needs '{signal}', which the vision encoder lacks"
                    )
        graphs: list[GraphInfo] = [*self.seeing, *self.language_model.graphs, *self.selectors]
        named = [path for graph in graphs for path in (graph.file, *graph.data)]
        named += [selector.stripped for selector in self.selectors if selector.stripped is not None]
        forbidden = self.prompt.forbidden_ids.ranges
        if forbidden and forbidden[-1][1] >= self.language_model.vocabulary:
            raise ValueError(
                f"id {forbidden[-1][1]} is forbidden, but there are {self.language_model.vocabulary} logits"
            )
        for path in [*named, self.prompt.tokenizer, self.prompt.chat_template]:
            if path not in self.files:
                raise ValueError(f"file '{path}' is used but not listed under 'files'")
        return self

    def to_json(self) -> str:
        """Return the manifest as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read_manifest(bundle: Path) -> Manifest:
    """Read and check ``bundle/manifest.json``.

    Raises:
        UserError: no such bundle, malformed JSON, a newer schema, or a field that does not fit.
    """
    path = bundle / MANIFEST
    if not is_folder(bundle):
        raise UserError(
            f"There is no bundle at '{bundle}': make one with 'python -m export llava'.",
            code="bundle-missing",
        )
    if not is_file(path):
        made = (
            f"; it is a checkpoint: 'python -m export --model {shlex.quote(str(bundle))}' makes a bundle of it"
            if is_file(bundle / "config.json")
            else ""
        )
        raise UserError(
            f"'{bundle}' is not a bundle: it has no {MANIFEST}{made}.", code="bundle-without-manifest"
        )
    data = read_json(path, code="manifest-invalid", unreadable="manifest-unreadable", advice=RESTORE)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"'{path}' has schema version {version}, this divprune-edge reads up to {SCHEMA_VERSION}: "
            "upgrade divprune-edge, or export the bundle again with this one.",
            code="manifest-too-new",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(
            f"'{path}' does not fit the schema at '{where}': {first['msg']}; export the bundle again "
            "with this divprune-edge.",
            code="manifest-invalid",
        ) from error
