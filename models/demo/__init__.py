"""The demo checkpoints: a small LLaVA and a small Qwen3-VL that see coloured shapes, and everything that made them.

Only paths live here. The pictures and the held-out questions are modules of this package; `trainer` made the
checkpoints and stays in the clone, as the second one does.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINT", "CLIP", "CLIP_FACTS", "IMAGE", "IMAGE_FACTS", "QWEN_CHECKPOINT"]

_HERE = Path(__file__).resolve().parent

CHECKPOINT: Path = _HERE / "checkpoint"
"""Hugging Face folder of the demo checkpoint."""

QWEN_CHECKPOINT: Path = _HERE / "qwen3-vl-checkpoint"
"""Hugging Face folder of the one of Qwen3-VL's architecture, which takes several images and clips; in a clone alone."""

IMAGE: Path = _HERE / "picture.png"
"""A picture to ask about (RGB, 384 x 384)."""

IMAGE_FACTS: Path = _HERE / "picture.json"
"""Three questions about `IMAGE` with their true answers."""

CLIP: Path = _HERE / "clip"
"""Folder of the four frames, half a second apart, of a clip to ask about (RGB, 192 x 192)."""

CLIP_FACTS: Path = _HERE / "clip.json"
"""Questions about `CLIP` with their true answers."""
