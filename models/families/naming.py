"""How parts of a checkpoint are found by the prefixes of their weights' names, of which several are in the wild."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from divprune_edge.errors import UserError


def find_prefix(prefixes: Sequence[str], probe: str, names: Collection[str], part: str, family: str) -> str:
    """Return the prefix of a part: the first with which a checkpoint has the weight ``probe``.

    Raises:
        UserError: it has none; the sentence names the ``part`` and what would be a checkpoint of the ``family``.
    """
    for prefix in prefixes:
        if prefix + probe in names:
            return prefix
    raise UserError(
        f"The checkpoint has no weights of the {part} (looked for '{prefixes[0]}{probe}' and "
        f"{len(prefixes) - 1} other spellings): a shard is missing or this is not a {family} checkpoint.",
        code="weights-incomplete",
    )


def find_head(heads: Sequence[str], decoder: str, names: Collection[str], *, tied: bool) -> str:
    """Return the output head's name, the embedding's where the checkpoint stores no head and ``tied`` says so.

    Raises:
        UserError: no head is stored, and none is said to be tied.
    """
    head = next((name for name in heads if name in names), None)
    if head is not None:
        return head
    if not tied:
        raise UserError(
            "The checkpoint has no lm_head.weight and its config does not tie the output head to the "
            "embedding (tie_word_embeddings): a shard is missing, download the checkpoint again.",
            code="weights-incomplete",
        )
    return f"{decoder}embed_tokens.weight"


def canonical(name: str, parts: Mapping[str, Sequence[str]], heads: Sequence[str]) -> str | None:
    """Return one name for all spellings of a weight's or module's; None where it is in no part.

    Args:
        name: of the weight or module.
        parts: what a part is called -> the prefixes that it has in the wild; the longest that fits is taken.
        heads: the output head's names.
    """
    if name.removesuffix(".weight") in [head.removesuffix(".weight") for head in heads]:
        return "head.weight" if name.endswith(".weight") else "head"
    found = [
        (prefix, part) for part, prefixes in parts.items() for prefix in prefixes if name.startswith(prefix)
    ]
    if not found:
        return None
    prefix, part = max(found, key=lambda one: len(one[0]))
    return f"{part}.{name[len(prefix) :]}"
