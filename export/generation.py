"""What a checkpoint's ``generation_config.json`` says of how its answers are decoded."""

from __future__ import annotations

from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import GenerationDefaults
from divprune_edge.models.files import LARGEST, CheckpointFiles

GENERATION_FILE = "generation_config.json"

# Not about which ids come: token ids that the prompt's facts hold, notes, and how results are returned or cached.
_ELSEWHERE = frozenset(
    """
    transformers_version _from_model_config _commit_hash bos_token_id eos_token_id pad_token_id decoder_start_token_id
    use_cache cache_implementation cache_config return_legacy_cache prefill_chunk_size output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate low_memory compile_config disable_compile
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit
    assistant_lookbehind target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size early_stopping
    length_penalty trust_remote_code generation_kwargs custom_generate
    """.split()  # noqa: SIM905 - a list of names, not of strings
)
# Values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1,),
    "min_p": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
}
_SAMPLING = frozenset({"typical_p", "min_p", "epsilon_cutoff", "eta_cutoff", "top_h"})


def read_generation(files: CheckpointFiles) -> GenerationDefaults | None:
    """Return the decoding settings of a checkpoint; None where it has no such file or it says nothing of them.

    Raises:
        UserError: a value of another type, or outside of its range.
    """
    data = {name: value for name, value in (files.json(GENERATION_FILE) or {}).items() if value is not None}
    known = {
        "do_sample": _flag(data.pop("do_sample", None)),
        "temperature": _number(data, "temperature", 0, None),
        "top_p": _number(data, "top_p", 0, 1),
        "top_k": _whole(data, "top_k", 0),
        "repetition_penalty": _number(data, "repetition_penalty", 0, None),
        "max_new_tokens": _whole(data, "max_new_tokens", 1),
        "stop": _texts(data.pop("stop_strings", None)),
    }
    idle = _ELSEWHERE if known["do_sample"] else _ELSEWHERE | _SAMPLING
    other = {
        name: value
        for name, value in data.items()
        if name not in idle and not any(value == neutral for neutral in _NEUTRAL.get(name, ()))
    }
    stated = {name: value for name, value in known.items() if value is not None}
    return GenerationDefaults(**stated, unsupported=other) if stated or other else None


def _flag(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _wrong("do_sample", value, "true or false")
    return value


def _number(data: dict[str, Any], name: str, above: float, most: float | None) -> float | None:
    value = data.pop(name, None)
    if value is None:
        return None
    fits = not isinstance(value, bool) and isinstance(value, (int, float)) and value < float("inf")
    low = name == "temperature"  # 0 is how some spell greedy
    if not fits or not (value > above or (low and value == above)) or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise _wrong(name, value, f"a number {'of at least' if low else 'above'} {above}{limit}")
    return float(value)


def _whole(data: dict[str, Any], name: str, least: int) -> int | None:
    value = data.pop(name, None)
    if value is not None and (type(value) is not int or not least <= value <= LARGEST):
        raise _wrong(name, value, f"a whole number from {least} to {LARGEST}")
    return value


def _texts(value: Any) -> tuple[str, ...] | None:
    listed = [value] if isinstance(value, str) else value
    if listed is not None and not (
        isinstance(listed, list) and all(isinstance(text, str) and text for text in listed)
    ):
        raise _wrong("stop_strings", value, "a text or a list of texts")
    return tuple(listed) if listed else None


def _wrong(name: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{GENERATION_FILE}: '{name}' is {value!r}, expected {expected}: correct it or take it out.",
        code="generation-config-value",
    )
