"""``manifest.json``: what a bundle holds, checked against a schema before any of it is opened.

The export writes it, the runtime reads it; everything the runtime needs to know about a checkpoint is here.
"""

from __future__ import annotations

from divprune_edge.manifest.bundle import (
    DEMO,
    MANIFEST,
    RESTORE,
    TILES_AT_ONCE,
    UNPRUNED,
    AdapterSource,
    Check,
    FileInfo,
    Manifest,
    Source,
    Verification,
    read_manifest,
)
from divprune_edge.manifest.fields import MOST_FRAMES, MOST_PIXELS, Dialect, Numbering, Per, Precision, Strict
from divprune_edge.manifest.graphs import (
    VISUAL_TOKENS,
    AssembleInfo,
    GraphInfo,
    SelectorInfo,
    TensorInfo,
    VisionInfo,
    tile_input,
)
from divprune_edge.manifest.images import MOST_SIZES, Clips, Patches, Preprocessing, Tiling
from divprune_edge.manifest.language import (
    CutInfo,
    LanguageCost,
    LanguageInfo,
    LayerGroup,
    ScheduleInfo,
    SegmentInfo,
    larger_capacity,
)
from divprune_edge.manifest.prompt import DEFAULT_TEMPLATE, GenerationDefaults, Prompt

__all__ = [
    "DEFAULT_TEMPLATE",
    "DEMO",
    "MANIFEST",
    "MOST_FRAMES",
    "MOST_PIXELS",
    "MOST_SIZES",
    "RESTORE",
    "TILES_AT_ONCE",
    "UNPRUNED",
    "VISUAL_TOKENS",
    "AdapterSource",
    "AssembleInfo",
    "Check",
    "Clips",
    "CutInfo",
    "Dialect",
    "FileInfo",
    "GenerationDefaults",
    "GraphInfo",
    "LanguageCost",
    "LanguageInfo",
    "LayerGroup",
    "Manifest",
    "Numbering",
    "Patches",
    "Per",
    "Precision",
    "Preprocessing",
    "Prompt",
    "ScheduleInfo",
    "SegmentInfo",
    "SelectorInfo",
    "Source",
    "Strict",
    "TensorInfo",
    "Tiling",
    "Verification",
    "VisionInfo",
    "larger_capacity",
    "read_manifest",
    "tile_input",
]
