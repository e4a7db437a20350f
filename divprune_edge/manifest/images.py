"""What a manifest says of images and clips: how they become the vision encoder's input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from divprune_edge.manifest.fields import MOST_FRAMES, MOST_PIXELS, MOST_TILES, Positive, Strict

MOST_SIZES = 32
"""Bound on the sizes that images of any size may be resized to: an engine has a profile for each."""
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
            if tiles > MOST_TILES or height * width > MOST_PIXELS:
                raise ValueError(
                    f"grid {height} x {width} has {tiles} tiles of {self.tile} x {self.tile}, at most {MOST_TILES} "
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
