"""What each id of an answer adds to its text, as bytes: a token may be a part of a character."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {
    chr(256 + at): byte for at, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
"""The characters by which byte-level tokenizers write bytes (GPT-2, Radford et al. 2019)."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece writes a byte that no token has."""


class TokenBytes:
    """The bytes of a growing sequence of ids: joined, they are the decoding of the sequence.

    Only bytes that are no UTF-8 differ: here they stand as they are, a decoding has U+FFFD in their place.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {i: token.content for i, token in added if token.special}
        self._last: int | None = None
        self._known = ""

    def push(self, token: int) -> None:
        """Go on behind an id."""
        if token not in self._special:
            self._last, self._known = token, self._decode(token)

    def of(self, token: int) -> tuple[str, bytes | None]:
        """Return an id's text and bytes, as they would follow; a special token has a name and no bytes."""
        if token in self._special:
            return self._special[token], None
        data = self._bytes(token)
        return data.decode("utf-8", "replace"), data

    def _bytes(self, token: int) -> bytes:
        name, alone = self._tokenizer.id_to_token(token) or "", self._decode(token)
        # A decoder may take a space from the beginning of the whole text.
        if self._last is None and _INCOMPLETE not in alone:
            return alone.encode()
        if (byte := _BYTE.fullmatch(name)) and alone != name:
            return bytes([int(byte[1], 16)])
        if _INCOMPLETE in alone and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        if self._last is None:
            return alone.encode()
        both = self._decode(self._last, token)
        return (both[len(self._known) :] if both.startswith(self._known) else alone).encode()

    def _decode(self, *ids: int) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
