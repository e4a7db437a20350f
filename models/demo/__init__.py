"""The demo checkpoint: a small LLaVA that sees coloured shapes, and everything that made it.

Only paths live here. The pictures and the held-out questions are modules of this package; `trainer` made the checkpoint
and stays in the clone.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINT", "PICTURE", "PICTURE_FACTS"]

_HERE = Path(__file__).resolve().parent

CHECKPOINT: Path = _HERE / "checkpoint"
"""Hugging Face folder of the demo checkpoint."""

PICTURE: Path = _HERE / "picture.png"
"""A picture to ask about (RGB, 384 x 384)."""

PICTURE_FACTS: Path = _HERE / "picture.json"
"""Three questions about `PICTURE` with their true answers."""
