"""Ids to text while they arrive, never splitting a character."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from divprune_edge.errors import UserError

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Text of a growing sequence of ids; what it has returned, joined, is the decoding of the whole sequence.

    A decoder looks at more than one token (spaces between words, bytes of one character), so each step
    decodes a window that starts at the last piece already returned, and returns what the window has gained.
    Text that ends in an incomplete character is held back, and so is a run of byte tokens (``<0xE2>``), which
    some decoders turn into text only as a whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Neither bytes nor special tokens, which decoding skips, end a run of bytes.
        self._silent = {tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}
        self._silent |= {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids: list[int] = []
        self._start = 0  # the window: ids[start:read] are in the text already returned
        self._read = 0
        self._returned = ""

    def known(self, ids: Sequence[int]) -> Sequence[int]:
        """Return ``ids``.

        Raises:
            UserError: one that no token has.
        """
        for i in ids:
            if self._tokenizer.id_to_token(i) is None:
                count = self._tokenizer.get_vocab_size()
                raise UserError(
                    f"No token has the stop id {i}: the tokenizer has {count} tokens, give the id of one of them.",
                    code="stop-id",
                )
        return ids

    def stop_tokens(self, strings: Sequence[str]) -> frozenset[int]:
        """Return the ids of those stop strings that are special tokens, which no text shows.

        Raises:
            UserError: a string with a special token among other text, which no text ever holds.
        """
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {token.content: i for i, token in added if token.special and token.content}
        found = set()
        for string in strings:
            held = next((token for token in special if token in string), None)
            if string.strip() in special:
                found.add(special[string.strip()])
            elif held is not None:
                raise UserError(
                    f"The stop string '{string}' holds the special token '{held}', which is no text of an answer: "
                    f"give '{held}' alone.",
                    code="stop-string-special-token",
                )
        return frozenset(found)

    def push(self, token: int) -> str:
        """Take one id and return the text that became certain, possibly none."""
        self._ids.append(token)
        if token in self._silent:
            return ""
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(known) or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        self._returned += text[len(known) :]
        return text[len(known) :]

    def finish(self) -> str:
        """Return what was still held back; call it once, after the last id."""
        text = self._decode(self._ids)
        return text[len(self._returned) :] if text.startswith(self._returned) else ""

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
