"""The bundle's tokenizer: text to ids, where some of the text must never become a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from divprune_edge.errors import UserError
from divprune_edge.strict_json import read_text

# Code points of the private use area, which no tokenizer's own tokens contain, with a number between them.
MOST_BYTES = 64 << 20
"""Of the file: one of 262,000 tokens has 33 MB."""
_PART, _END = "\ue000", "\ue002"
_MARKS = re.compile(f"[{_PART}\ue001{_END}]")

# Edges of the names that special tokens get: letters (Vai) and other characters (Yi radicals) that no normalizer
# changes and hardly a text has. Whether a token's neighbour is a word goes by the neighbour's edge.
_WORD_EDGES = [chr(i) for i in range(0xA500, 0xA60C)]
_OTHER_EDGES = [chr(i) for i in range(0xA490, 0xA4C7)]


class _Match(NamedTuple):
    """A special token that acts: ``text[start:end]`` is ``content``, or what is normalized to it."""

    start: int
    end: int
    content: str


class PromptTokenizer:
    """``tokenizer.json`` with the rules that BOS is added only where the text does not bring it, and that
    special tokens act in the template alone.

    Other added tokens are words that the model was taught: they act wherever they stand, as in transformers.

    Args:
        file: a ``tokenizer.json``, or its text.
        bos_token: the token that begins a text.
        special: tokens that are special whatever the tokenizer says of them, such as the image placeholder.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, file: Path | str, bos_token: str | None, special: Iterable[str] = ()) -> None:
        self._name = "tokenizer.json" if isinstance(file, str) else str(file)
        self._source = (
            file
            if isinstance(file, str)
            else read_text(file, code="tokenizer-unreadable", advice="restore it", most=MOST_BYTES)
        )
        self._bos = bos_token
        with self._guarded():
            self.model = Tokenizer.from_str(self._source)
            self.model.no_truncation()
            self.model.no_padding()
            named = set(special)
            added: list[AddedToken] = list(self.model.get_added_tokens_decoder().values())
            self._special = [token.content for token in added if token.special or token.content in named]
            self._folded = {form for token in self._special for form in self._forms(token) if form}
            self._matcher = self._make_matcher(added)
        self._renamed = lru_cache(maxsize=4)(self._rename)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Tell in a sentence what the library makes of a damaged file: exceptions of any kind, and Rust's panics."""
        try:
            yield
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"'{self._name}' cannot be read as a tokenizer by tokenizers {tokenizers.__version__} ({reason}): use "
                "the version that wrote it, or a newer one.",
                code="tokenizer-unreadable",
            ) from error

    def holds_special(self, text: str) -> bool:
        """Return whether ``text`` might hold a special token (in any case: some match after lowering)."""
        if _MARKS.search(text) is not None:
            return True
        return any(token in form for form in self._forms(text) for token in self._folded)

    def special_in(self, text: str) -> set[str]:
        """Return the special tokens that act in ``text``."""
        return {match.content for match in self._matches(text)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, special tokens and all."""
        return self._encode(self.model, text, begun=bool(self._bos) and text.startswith(self._bos or ""))

    def encode_with_plain(self, text: str, plain: Mapping[str, str]) -> list[int]:
        """Return the ids of a text parts of which are never special tokens, whatever they look like.

        The special tokens that act outside of the plain parts get other names, in ``text`` and in a copy of the
        tokenizer that knows them by no other, and the whole is encoded at once. So the tokenizer's rules about the
        beginning of a text and the neighbours of a token apply as ever.

        Args:
            text: with a stand-in (:func:`stand_in`) in the place of each plain part.
            plain: stand-in to plain part.
        """
        full, spans = _fill(text, plain)
        acting = [
            match
            for match in self._matches(full)
            if not any(match.start < end and start < match.end for start, end in spans)
        ]
        used = set(full).union(*self._special)
        edges = tuple(
            next(edge for edge in candidates if edge not in used)
            for candidates in (_WORD_EDGES, _OTHER_EDGES)
        )
        with self._guarded():
            model, names = self._renamed(*edges)
        pieces, at = [], 0
        for match in acting:
            pieces += [full[at : match.start], names[match.content]]
            at = match.end
        begun = bool(self._bos) and full.startswith(self._bos or "") and not _begins(spans)
        return self._encode(model, "".join([*pieces, full[at:]]), begun=begun)

    def _encode(self, model: Tokenizer, text: str, *, begun: bool) -> list[int]:
        with self._guarded():
            return list(model.encode(text, add_special_tokens=not begun).ids)

    def _forms(self, text: str) -> set[str]:
        """Return ``text`` in the spellings in which a token of it might be found."""
        normalizer = self.model.normalizer
        normal = normalizer.normalize_str(text) if normalizer is not None else text
        return {text.casefold(), normal.casefold().strip("\u2581 ")}

    def _make_matcher(self, added: Iterable[AddedToken]) -> Tokenizer:
        """Return a tokenizer that finds added tokens as the real one does, and nothing else."""
        matcher = Tokenizer(WordLevel({"": 0}, unk_token=""))
        if self.model.normalizer is not None:
            matcher.normalizer = self.model.normalizer
        matcher.add_tokens(list(added))
        return matcher

    def _matches(self, text: str) -> Iterator[_Match]:
        """Yield the special tokens that act in ``text``, without the spaces that some of them take along."""
        special = {self._matcher.token_to_id(content): content for content in self._special}
        found = self._matcher.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(found.ids, found.offsets, strict=True):
            content = special.get(token)
            if content is None:
                continue
            at = text.find(content, start, end)
            if at >= 0:
                yield _Match(at, at + len(content), content)
            else:
                taken = text[start:end]
                yield _Match(end - len(taken.lstrip()), start + len(taken.rstrip()), content)

    def _rename(self, word: str, other: str) -> tuple[Tokenizer, dict[str, str]]:
        """Return the tokenizer with its special tokens under other names and the same ids, and the names."""

        def edge(character: str) -> str:
            return word if re.match(r"\w", character) else other

        names = {
            token: f"{edge(token[0])}{i}{edge(token[-1])}" for i, token in enumerate(self._special) if token
        }
        data: dict[str, Any] = json.loads(self._source)
        for token in data.get("added_tokens") or []:
            if token["content"] in names:
                # That it stands alone where it must is settled.
                token |= {"content": names[token["content"]], "single_word": False}
        _rename_vocabulary(data["model"], names)
        renamed = Tokenizer.from_str(json.dumps(data))
        renamed.no_truncation()
        renamed.no_padding()
        return renamed, names


def stand_in(index: int) -> str:
    """Return a text to put in the place of a plain part while a template is rendered."""
    return f"{_PART}{index}{_END}"


def without_stand_ins(text: str) -> str:
    """Return ``text`` with spaces in the place of characters that stand-ins are made of."""
    return _MARKS.sub(" ", text)


def _begins(spans: list[tuple[int, int]]) -> bool:
    return any(start == 0 < end for start, end in spans)


def _fill(text: str, plain: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """Return ``text`` with the plain parts in it, and where each of them is."""
    if not plain:
        return text, []
    pieces, spans, length = [], [], 0
    for piece in re.split(f"({'|'.join(re.escape(mark) for mark in plain)})", text):
        part = plain.get(piece, piece)
        if piece in plain:
            spans.append((length, length + len(part)))
        pieces.append(part)
        length += len(part)
    return "".join(pieces), spans


def _rename_vocabulary(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens in a model, which then makes none of them from a text any more."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if not names.keys() & {left, right, left + right.removeprefix(prefix)}
        ]
