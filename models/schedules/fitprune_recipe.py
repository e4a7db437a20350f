"""FitPrune's released recipe for LLaVA-1.5-7B at a reduction of 60 %: how many of 576 visual tokens leave where.

The counts are of github.com/ywh187/FitPrune, commit d28e418, LLaVA_1.5/llava/model/language_model/modeling_llama.py,
licensed under the Apache License 2.0 (by that file's notice and LLaVA_1.5/LICENSE); nothing else is taken from there.
"""

from __future__ import annotations

VISUAL = 576
DELETIONS = (
    *(14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4),
    *(26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
)
"""By layer, of 32."""
