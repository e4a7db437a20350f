"""Chat templates in a sandbox, with the options, filters and functions that transformers gives them.

A template comes with a checkpoint from anywhere: it sees plain text, lists and dictionaries and can change
nothing. The differences between two Jinja environments are invisible until a prompt is wrong, so the settings
here follow ``transformers.utils.chat_template_utils`` point by point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from divprune_edge.errors import UserError

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
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise UserError(
                f"The bundle's chat template is not valid ({error}): mend the checkpoint's and export it again.",
                code="template-invalid",
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of ``messages`` with the start of the assistant's answer.

        Raises:
            UserError: the template refuses the messages or fails.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except Exception as error:  # a template can fail like any program
            raise UserError(
                f"The bundle's chat template refuses these messages ({error}).", code="template-refuses"
            ) from error


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
    return datetime.now().strftime(pattern)
