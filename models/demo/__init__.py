"""The demo checkpoint: a small LLaVA that sees coloured shapes, and everything that made it.

Only paths live here; the pictures, the questions, the trainer and the evaluation are modules of
this package, and torch is imported by the modules that train or evaluate, never by this one.
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
