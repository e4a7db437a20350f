"""A checkpoint's ``tokenizer.json``, with the added tokens that its other files name, as transformers loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.ids import MOST_IDS
from divprune_edge.models.files import CheckpointFiles, Config

TOKENIZER_FILE = "tokenizer.json"
"""Name in the bundle, and in checkpoints."""

# In transformers' order.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


@dataclass
class Tokenizer:
    """The JSON of a tokenizer, and whether it differs from the checkpoint's file."""

    data: dict[str, Any]
    changed: bool = False
    invented: set[str] = field(default_factory=set)
    """Tokens that are named and have an id nowhere: they got the next ones."""

    @property
    def text(self) -> str:
        """The content of a ``tokenizer.json``."""
        return json.dumps(self.data, ensure_ascii=False)

    def ids(self) -> dict[str, int]:
        """Return token -> id."""
        return dict(self._ids)

    def added_ids(self) -> dict[str, int]:
        """Return added token -> id."""
        return {_text(entry["content"]): _id(entry["id"]) for entry in self._added}

    @property
    def known(self) -> Collection[str]:
        """All tokens."""
        return self._ids.keys()

    @cached_property
    def _ids(self) -> dict[str, int]:
        vocabulary: Any = (self.data.get("model") or {}).get("vocab") or {}
        if not isinstance(vocabulary, dict):
            vocabulary = {_text(entry[0]): i for i, entry in enumerate(vocabulary)}
        return {token: _id(i) for token, i in vocabulary.items()} | self.added_ids()

    @cached_property
    def _places(self) -> dict[str, int]:
        """Added token -> where it stands in the list."""
        return {entry["content"]: i for i, entry in enumerate(self._added)}

    @cached_property
    def _next(self) -> int:
        return max(self._ids.values(), default=-1) + 1

    def add(self, token: dict[str, Any], number: int | None = None) -> None:
        """Add a token, or give one that is there other flags.

        Args:
            token: ``content`` and the flags of an ``AddedToken``.
            number: its id as the checkpoint states it; None takes the next one.

        Raises:
            UserError: the token has another id in ``tokenizer.json``, or would get another one.
        """
        content = _text(token["content"])
        place = self._ids.get(content, self._next)
        if number is not None and place != number:
            raise UserError(
                f"The checkpoint states id {number} for the token '{content}', but by {TOKENIZER_FILE} it is {place}: "
                "the files do not belong together, download the checkpoint again or load and save its tokenizer "
                "with transformers.",
                code="tokenizer-files-disagree",
            )
        special = bool(token.get("special"))
        entry = {
            "id": place,
            "content": content,
            **{name: bool(token.get(name, default)) for name, default in _FLAGS.items()},
            "normalized": bool(token.get("normalized", not special)),
            "special": special,
        }
        there = self._places.get(content)
        if there is None:
            self._places[content] = len(self._added)
            self._added.append(entry)
            self._ids[content] = place
            self._next = max(self._next, place + 1)
        elif self._added[there] != entry:
            self._added[there] = entry
        else:
            return
        self.changed = True

    @property
    def _added(self) -> list[dict[str, Any]]:
        added = self.data.get("added_tokens")
        if not isinstance(added, list):
            added = self.data["added_tokens"] = []
        return added


def read_tokenizer(files: CheckpointFiles) -> Tokenizer:
    """Return the tokenizer of a checkpoint.

    Tokens come from ``tokenizer.json``, from ``added_tokens_decoder`` in ``tokenizer_config.json`` (its flags
    outrank the others'), or where that is missing from ``added_tokens.json``, and from the tokens that have names.

    Raises:
        UserError: no ``tokenizer.json``, or files that state different ids.
    """
    data = files.json(TOKENIZER_FILE)
    if data is None:
        piece = " (with sentencepiece and protobuf installed)" if files.path("tokenizer.model") else ""
        raise UserError(
            f"'{files.title}' has no tokenizer.json: {files.own_copy}make one with transformers' "
            f"{_class(files)}.from_pretrained('FOLDER').save_pretrained('FOLDER'){piece}, and export FOLDER.",
            code="tokenizer-missing",
        )
    try:
        return _with_named_tokens(Tokenizer(data), files)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The tokenizer files of '{files.title}' say what cannot be meant ({type(error).__name__}: {error}): "
            "download them again.",
            code="tokenizer-unreadable",
        ) from None


def _with_named_tokens(tokenizer: Tokenizer, files: CheckpointFiles) -> Tokenizer:
    data, config = tokenizer.data, files.json("tokenizer_config.json") or {}
    tokenizer.ids()  # all of them are ids, also where nothing is added
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        stated = {_id(int(i)): dict(token) for i, token in decoder.items()}
    else:
        # Legacy in transformers: special_tokens_map.json counts only here, and outranks.
        config = config | (files.json("special_tokens_map.json") or {})
        stated = _legacy(files, config)
        stated |= {_id(token["id"]): dict(token) for token in data.get("added_tokens") or []}
    named = {_content(token): token for token in _named(config)}
    for i, token in sorted(stated.items()):
        special = bool(token.get("special"))
        token.setdefault("normalized", not special)
        tokenizer.add({**token, "special": special or token["content"] in named}, i)
    known = {str(token["content"]) for token in data.get("added_tokens") or []}
    for content, token in {**named, **{_content(token): token for token in _extra(config)}}.items():
        if content not in known:
            if content not in tokenizer.known:
                tokenizer.invented.add(content)
            flags = token if isinstance(token, dict) else {}
            tokenizer.add({"normalized": False, **flags, "content": content, "special": True})
    return tokenizer


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_IDS:
        raise ValueError(f"{str(value)[:60]} is not an id")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]} is not a token")
    return value


def _class(files: CheckpointFiles) -> str:
    """Return the class that converts the tokenizer; AutoTokenizer goes by the model's type, and LLaVA has no class."""
    name = str((files.json("tokenizer_config.json") or {}).get("tokenizer_class")).removesuffix("Fast")
    return name if re.fullmatch(r"(?!PreTrained)[A-Z]\w+Tokenizer", name) else "AutoTokenizer"


def _legacy(files: CheckpointFiles, config: Config) -> dict[int, dict[str, Any]]:
    special = {_content(config[name]) for name in _NAMED if config.get(name)}
    special |= {_content(token) for token in _extra(config)}
    return {
        _id(i): {"content": content, "normalized": content not in special, "special": content in special}
        for content, i in (files.json("added_tokens.json") or {}).items()
    }


def _named(config: Config) -> Iterator[Any]:
    """Yield the tokens that have a name: ``eos_token``, or one of this model alone such as ``image_token``."""
    own = [name for name in config if name.endswith("_token") and name not in _NAMED]
    extra = config.get("extra_special_tokens")
    named = [config.get(name) for name in (*_NAMED, *own)]
    named += extra.values() if isinstance(extra, dict) else []
    yield from (token for token in named if _content(token))


def _extra(config: Config) -> Iterator[Any]:
    """Yield the special tokens without a name."""
    for name in ("extra_special_tokens", "additional_special_tokens"):
        extra = config.get(name)
        if isinstance(extra, list) and extra:
            yield from (token for token in extra if _content(token))
            return


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
