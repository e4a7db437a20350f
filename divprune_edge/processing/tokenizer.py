"""The bundle's tokenizer: text to ids, where some of the text must never become a special token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer

from divprune_edge.errors import UserError

# Code points of the private use area, which no tokenizer's own tokens contain, with a number between them.
_PART, _TOKEN, _END = "\ue000", "\ue001", "\ue002"
_MARKS = re.compile(f"[{_PART}{_TOKEN}{_END}]")


class PromptTokenizer:
    """``tokenizer.json`` with the rule that BOS is added only where the text does not bring it.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, file: Path, bos_token: str | None) -> None:
        try:
            self._source = file.read_text(encoding="utf-8")
            self.model = Tokenizer.from_str(self._source)
        except Exception as error:  # tokenizers raises plain Exception
            raise UserError(
                f"'{file}' cannot be read as a tokenizer by tokenizers {tokenizers.__version__} ({error}): use the "
                "version that wrote it, or a newer one.",
                code="tokenizer-unreadable",
            ) from error
        self.model.no_truncation()
        self.model.no_padding()
        self._bos = bos_token
        self._added = [str(token.content) for token in self.model.get_added_tokens_decoder().values()]

    def holds_special(self, text: str) -> bool:
        """Return whether ``text`` might hold an added token (in any case: some match after lowering)."""
        folded = text.casefold()
        return _MARKS.search(text) is not None or any(token.casefold() in folded for token in self._added)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, special tokens and all."""
        return self._encode(self.model, text, self._bos)

    def encode_with_plain(self, text: str, plain: dict[str, str]) -> list[int]:
        """Return the ids of a text parts of which are plain words whatever they look like.

        In a copy of the tokenizer every added token gets another name; in ``text`` they are renamed, in the
        plain parts they are not, and the whole is encoded at once. So the tokenizer's rules about the
        beginning of a text and the neighbours of a special token apply as ever.

        Args:
            text: with a stand-in (:func:`stand_in`) in the place of each plain part.
            plain: stand-in to plain part.
        """
        names = {token: f"{_TOKEN}{i}{_END}" for i, token in enumerate(self._added)}
        pattern = "|".join(re.escape(token) for token in sorted(names, key=len, reverse=True))
        renamed = re.sub(pattern, lambda match: names[match[0]], text) if names else text
        for mark, part in plain.items():
            renamed = renamed.replace(mark, part)
        return self._encode(_renamed(self._source, names), renamed, names.get(self._bos or "", self._bos))

    def _encode(self, model: Tokenizer, text: str, bos: str | None) -> list[int]:
        return list(model.encode(text, add_special_tokens=not (bos and text.startswith(bos))).ids)


def stand_in(index: int) -> str:
    """Return a text to put in the place of a plain part while a template is rendered."""
    return f"{_PART}{index}{_END}"


def without_stand_ins(text: str) -> str:
    """Return ``text`` with spaces in the place of characters that stand-ins are made of."""
    return _MARKS.sub(" ", text)


def _renamed(source: str, names: dict[str, str]) -> Tokenizer:
    """Return the tokenizer of ``source`` with its added tokens under other names and the same ids."""
    data: dict[str, Any] = json.loads(source)
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    renamed = Tokenizer.from_str(json.dumps(data))
    renamed.no_truncation()
    renamed.no_padding()
    return renamed
