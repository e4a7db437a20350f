"""The visual-token budget: from a pruning ratio to K, exactly and the same everywhere."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from divprune_edge.errors import UserError

DEFAULT_PRUNE = "0.9"


def budget(keep: int | None, prune: str | None, candidates: int, whole: int | None = None) -> int:
    """Return K from ``--keep`` or ``--prune`` (0.9 where neither is given).

    ``whole`` is how many visual tokens there would be if none left inside the encoder: ``--prune`` counts from there.

    Raises:
        UserError: a budget out of range.
    """
    if keep is None:
        keep = keep_from_prune(DEFAULT_PRUNE if prune is None else prune, whole or candidates)
    return check_keep(keep, candidates)


def keep_from_prune(ratio: str | float, candidates: int) -> int:
    """Return ``K = max(1, round((1 - ratio) * candidates))`` in decimal arithmetic, half to even.

    Args:
        ratio: share of visual tokens to drop, in [0, 1); a string keeps its decimal digits exact.
        candidates: N, the number of visual tokens.

    Raises:
        UserError: the ratio is not a number in [0, 1).
    """
    try:
        share = Decimal(str(ratio))
    except InvalidOperation:
        share = Decimal("NaN")
    if not (share.is_finite() and 0 <= share < 1):
        raise UserError(
            f"--prune {ratio} is not a pruning ratio: give the share of visual tokens to drop, "
            "at least 0 and below 1, such as 0.9.",
            code="prune-out-of-range",
        )
    kept = ((1 - share) * candidates).quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    return max(1, int(kept))


USUAL_TOKENS = 2048
"""Most visual tokens of an image of any size where nothing else is asked for: a selector's memory grows with their
square."""
USUAL_CLIP_TOKENS = 8192
"""The same of a clip."""
CAPACITY_STEP = 64
PROMPT = 192
"""Tokens of a usual prompt, at most: system prompt, question, a few turns; the image is counted apart."""
CAPTION = 10
"""Tokens of what tells the time of a grid of a clip, where it is text: ``<12.5 seconds>`` and the ends of a span."""
_ANSWER = 256
_AT_LEAST_BESIDE = 64


def cache_capacity(keep: int, context: int, asked: int | None = None, captions: int = 0) -> int:
    """Return the rows of a KV cache of fixed size: ``asked``, or room for what is usual.

    The usual is K visual tokens, 192 tokens of prompt and 256 of answer, rounded up to a multiple of 64, and at
    most the context; and those of a clip's ``captions``, of :data:`CAPTION` tokens each.

    Args:
        keep: K, visual tokens that the language model sees.
        context: positions that the model was made for.
        asked: ``--capacity``.
        captions: times of a clip that are written between its visual tokens, at most.

    Raises:
        UserError: ``asked`` leaves no room for a question and an answer, or is beyond the context.
    """
    if asked is None:
        needed = keep + captions * CAPTION + PROMPT + _ANSWER
        usual = -(-needed // CAPACITY_STEP) * CAPACITY_STEP
        return min(usual, context)
    least = least_capacity(keep, context)
    if not least <= asked <= context:
        raise UserError(
            f"--capacity {asked} is out of range: with {keep} visual tokens and {_AT_LEAST_BESIDE} for question "
            f"and answer the cache needs at least {least} rows, and the model's context ends at {context}.",
            code="capacity-out-of-range",
        )
    return asked


def least_capacity(keep: int, context: int) -> int:
    """Return the fewest rows of a KV cache of fixed size: K visual tokens, and a short question and answer."""
    return min(keep + _AT_LEAST_BESIDE, context)


def check_keep(keep: int, candidates: int) -> int:
    """Return ``keep`` if 1 <= keep <= candidates.

    Raises:
        UserError: the budget is out of range.
    """
    if not 1 <= keep <= candidates:
        raise UserError(
            f"--keep {keep} is out of range: this encoder gives {candidates} visual tokens, "
            f"so keep between 1 and {candidates} of them.",
            code="keep-out-of-range",
        )
    return keep
