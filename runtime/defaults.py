"""The checkpoint's own decoding settings, used where they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from divprune_edge.manifest import GenerationDefaults, Prompt
from divprune_edge.runtime.generate import Decoding

_log = logging.getLogger(__name__)

# transformers' own where do_sample is true and the file says no more.
_SAMPLED_TEMPERATURE, _SAMPLED_TOP_K = 1.0, 50


def decoding_of(prompt: Prompt, options: Mapping[str, Any]) -> Decoding:
    """Return how an answer is decoded: ``options``, over the checkpoint's settings if these are asked for.

    Args:
        prompt: the bundle's entry, with what the checkpoint says.
        options: fields of :class:`Decoding`, and ``checkpoint_defaults``, whether what they leave open is taken from
            ``generation_config.json``. What of it this runtime cannot do is logged, by name.

    Raises:
        UserError: a value outside its range.
    """
    given = dict(options)
    if not given.pop("checkpoint_defaults", False):
        return Decoding.of(given)
    stated = prompt.generation or GenerationDefaults()
    if stated.unsupported:
        _log.warning(
            "generation_config.json asks for %s, which this runtime does not have: answers can differ from "
            "transformers' there.",
            ", ".join(f"{name} {value}" for name, value in stated.unsupported.items()),
        )
    return Decoding.of({**checkpoint_options(stated), **given})


def checkpoint_options(stated: GenerationDefaults) -> dict[str, Any]:
    """Return what a checkpoint's settings come to as fields of :class:`Decoding`; greedy unless it samples."""
    options: dict[str, Any] = {"max_tokens": stated.max_new_tokens, "stop": stated.stop or None}
    options["repetition_penalty"] = stated.repetition_penalty
    if stated.do_sample:
        options["top_p"] = stated.top_p
        options["temperature"] = _SAMPLED_TEMPERATURE if stated.temperature is None else stated.temperature
        options["top_k"] = _SAMPLED_TOP_K if stated.top_k is None else stated.top_k
    return {name: value for name, value in options.items() if value is not None}
