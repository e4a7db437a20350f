"""The model families that can be exported: one line each."""

from __future__ import annotations

from divprune_edge.models.llava import FAMILY as LLAVA

FAMILIES = {LLAVA: "LLaVA-1.5: CLIP tower, two-layer projector, Llama, Mistral or Qwen2"}
"""Family name -> one line for the help text."""
