"""What came back of a question, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from divprune_edge.runtime.generate import FinishReason


@dataclass(frozen=True)
class Answer:
    """What came back, and what it took.

    ``token_ids`` are the sampled ids, with the stop id if one ended the answer. ``kept_indices`` int64 [K]
    are the visual tokens that the language model saw, ascending: those of several images one after the other, with
    ``image_tokens`` for each, clips among them. ``visual_tokens`` is K, of all of them, and ``prompt_tokens`` counts
    them too. ``kept_from`` has for each cut of a schedule, by the layer before which it is, int64 [k]: which of these
    K go on, by their number among them.

    ``timings_ms`` has ``preprocess`` (images and prompt), ``vision``, ``select``, ``prefill`` (until the first id),
    ``decode`` and ``total``; loading the graphs is in none of them, nor is ``warm_up``, which is there where a
    pipeline was warmed up. In a chat the later questions have no ``vision`` and ``select`` to pay for, unless they
    bring an image: both are 0. In a batch the first three stages are those of all questions together, ``prefill``
    has those of the questions before in it, and ``total`` lasts until all of them are answered.
    """

    answer: str
    token_ids: tuple[int, ...]
    kept_indices: npt.NDArray[np.int64]
    prompt_tokens: int
    visual_tokens: int
    image_tokens: tuple[int, ...]
    timings_ms: dict[str, float]
    finish_reason: FinishReason
    backend: str
    kept_from: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the answer as one line of JSON."""
        kept_from = {layer: kept.tolist() for layer, kept in self.kept_from.items()}
        fields = {
            **vars(self),
            "kept_from": kept_from,
            "kept_indices": self.kept_indices.tolist(),
            "timings_ms": {stage: round(value, 3) for stage, value in self.timings_ms.items()},
        }
        return json.dumps(fields, ensure_ascii=False)
