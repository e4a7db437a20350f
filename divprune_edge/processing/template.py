"""Chat templates in a sandbox, with the options, filters and functions that transformers gives them.

A template comes with a checkpoint from anywhere: it sees plain text, lists and dictionaries, can change nothing, and
has little time and memory (:mod:`.bounded`).

The differences between two Jinja environments are invisible until a prompt is wrong, so the settings
here follow ``transformers.utils.chat_template_utils`` point by point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from divprune_edge.errors import UserError
from divprune_edge.processing.bounded import MOST_SOURCE, BoundedEnvironment, TooMuchWork, budget

Message = Mapping[str, Any]


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        tokens: special tokens by the name that templates use (``bos_token``, …).

    Raises:
        UserError: the source is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        if len(source) > MOST_SOURCE:
            raise UserError(
                f"The bundle's chat template has {len(source)} characters, at most {MOST_SOURCE} are read: export the "
                "checkpoint with another template.",
                code="template-invalid",
            )
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.add_filter("tojson", _to_json)
        environment.provide("raise_exception", _raise_exception)
        environment.provide("strftime_now", _strftime_now)
        self._tokens = dict(tokens)
        try:
            with budget():
                self._template = environment.from_string(source)
        except Exception as error:  # nested too deep for the parser, or for Python's own
            raise UserError(
                f"The bundle's chat template is not valid ({_plain(error)}): mend the checkpoint's and export it "
                "again.",
                code="template-invalid",
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of ``messages`` with the start of the assistant's answer.

        Raises:
            UserError: the template refuses the messages, fails, or takes too much time or memory.
        """
        try:
            with budget(messages):
                return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except TooMuchWork as error:
            raise UserError(
                f"The bundle's chat template is stopped, because {_plain(error)}: export the checkpoint with another "
                "template.",
                code="template-too-much-work",
            ) from error
        except Exception as error:  # a template can fail like any program
            raise UserError(
                f"The bundle's chat template refuses these messages ({_plain(error)}).",
                code="template-refuses",
            ) from error


def _plain(error: Exception) -> str:
    """Return what an error says without the characters that move a terminal's cursor, and not at any length."""
    text = "".join(c if c.isprintable() else " " for c in str(error)[:400])
    return " ".join(text.split()) or type(error).__name__


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200 or re.search(r"\d{3}", pattern):  # the C library takes widths: %999999999d
        raise TemplateError("strftime_now takes a short pattern without widths")
    return datetime.now().strftime(pattern)
