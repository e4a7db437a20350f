"""From the parser's static checkers to the table of what they ask of attributes.

``python -m divprune_edge.export.check.generate_attributes CHECKERS.cpp OUTPUT.json --tensorrt … --revision …``

The checkers are ``onnxOpCheckers.cpp`` of the repository onnx/onnx-tensorrt, at the revision that a release of TensorRT
was built from. This reads C++ by its habits, not by its grammar, so it takes over only what it is sure of: a check that
no condition stands before and that is an attribute left out, an attribute equal to constants, or a number of outputs.
Every other attribute that a checker, or a helper that it calls, looks at is listed as ``unread``. Texts of messages are
not stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.check.generate import run, write_table, written
from divprune_edge.models.tensorrt import parse_version

ANY = "*"
"""In ``unread``: the checker looks at attributes that it does not name, or hands them on to where this cannot look."""

# Strings of more than a word are messages: none of them may be taken for code.
_OPAQUE = re.compile(
    r"""(?P<word>"\w*")|(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|//[^\n]*|/\*.*?\*/""", re.S
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:.*\\\n)*.*$", re.M)
_CHECKER = re.compile(r"\bDEFINE_OP_(EMPTY_)?CHECKER\s*\(\s*(\w+)\s*\)")
_HELPER = re.compile(r"\bvoid\s+(\w+)\s*\([^{};]*\)\s*(?=\{)")
_CALL = re.compile(r"\b(\w+)\s*\(\s*ctx\s*,\s*node\b([^;]*)\)\s*;")
_READ = r'\w+\s*\.\s*(?P<how>get|count)\s*(?:<[^;"]*?>)?\s*\(\s*"(?P<name>\w+)"\s*'
_MENTION = re.compile(_READ)
_OPERAND = re.compile(
    r"(?:static_cast\s*<\s*bool\s*>\s*\(\s*)?"
    rf"{_READ}(?:,(?P<default>[^;()]*(?:\([^()]*\)[^;()]*)*))?\)\s*\)?(?:\s*(?:>|!=)\s*0)?"
)
_ASSIGNED = re.compile(r"(?P<to>\w+)\s*(?:=(?P<value>[^=;][^;]*)|\{(?P<braced>[^;]*)\})\s*;")
_LITERAL = re.compile(r'"(?P<text>\w*)"|(?P<number>-?\d+(?:\.\d*)?)[fF]?|(?P<truth>true|false)')
_OUTPUTS = re.compile(r"node\s*\.\s*output(?:\s*\(\s*\)\s*\.\s*size|_size)\s*\(\s*\)\s*(?:==|<=)\s*(\d+)")
# The operator list has the element types.
_ELEMENT_TYPE = re.compile(r"convertDtype\s*\(\s*(\w+)\s*,[^,()]*\)")
_MESSAGE = re.compile(r'(?:MESSAGE|"\w*"|\s)+')


@dataclass
class _Found:
    """What one body of code asks."""

    absent: set[str] = field(default_factory=set)
    values: dict[str, list[Any]] = field(default_factory=dict)
    outputs: int | None = None
    unread: set[str] = field(default_factory=set)
    refused: bool = False

    def join(self, other: _Found, *, always: bool) -> None:
        """Take over what a helper asks; what is not always asked is no more than unread."""
        self.unread |= other.unread
        if not always:
            self.unread |= other.absent | set(other.values)
            return
        self.absent |= other.absent
        self.values.update(other.values)
        self.outputs = self.outputs if other.outputs is None else other.outputs
        self.refused |= other.refused

    def entry(self) -> dict[str, Any]:
        """Return the entry of the table, without what is empty."""
        values = {name: self.values[name] for name in sorted(self.values)}
        found = {"absent": sorted(self.absent), "values": values, "unread": sorted(self.unread)}
        outputs = {} if self.outputs is None else {"outputs": self.outputs}
        return {key: value for key, value in found.items() if value} | outputs


def read_checkers(text: str) -> dict[str, Any]:
    """Return operator -> what its checker asks, the operators refused as a whole, and those without constraints.

    Raises:
        UserError: the text has no checkers, or is damaged.
    """
    code = _DIRECTIVE.sub("", _OPAQUE.sub(lambda m: m["word"] or ("MESSAGE" if m["text"] else " "), text))
    bodies = {match[1]: _enclosed(code, match.end(), match[1]) for match in _HELPER.finditer(code)}
    names = []
    for match in _CHECKER.finditer(code):
        empty, name = match.groups()
        if name in names:
            raise UserError(
                f"The text has the checker of '{name}' twice: it is damaged, fetch the file again.",
                code="source-damaged",
            )
        names.append(name)
        bodies[f"check{name}"] = "" if empty else _enclosed(code, match.end(), name)
    if not names:
        raise UserError(
            "The text has no DEFINE_OP_CHECKER: give onnxOpCheckers.cpp of onnx/onnx-tensorrt.",
            code="source-not-recognized",
        )
    found = {name: _follow(f"check{name}", bodies, ()) for name in sorted(names)}
    entries = {name: asked.entry() for name, asked in found.items() if not asked.refused}
    return {
        "operators": {name: entry for name, entry in entries.items() if entry},
        "refused": [name for name, asked in found.items() if asked.refused],
        "unconstrained": [name for name, entry in entries.items() if not entry],
    }


def _enclosed(code: str, start: int, name: str) -> str:
    """Return what is in the brackets that open at ``start``."""
    opening = re.compile(r"\s*[({]").match(code, start)
    depth = 0
    for position in range(opening.end() - 1 if opening else len(code), len(code)):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(code[position], 0)
        if depth == 0 and opening:
            inside = code[opening.end() : position]
            if "DEFINE_OP_" not in inside:
                return inside
            break
    raise UserError(
        f"The brackets of '{name}' do not close: the text is damaged, fetch the file again.",
        code="source-damaged",
    )


def _follow(name: str, bodies: dict[str, str], callers: tuple[str, ...]) -> _Found:
    """Read one body and the helpers that it calls."""
    found = _Found()
    rest = _checks(bodies[name], found, name)
    for match in _CALL.finditer(rest):
        helper, more = match.groups()
        always = _always(rest, match.start())
        limit = re.search(r",\s*(\d+)\s*$", more)
        if helper == "emptyOutputChecker" and limit and always:
            found.outputs = int(limit[1])
        elif helper in bodies and helper not in callers:
            found.join(_follow(helper, bodies, (*callers, name)), always=always)
        else:
            found.unread.add(ANY)
    found.unread |= {match["name"] for match in _MENTION.finditer(rest)}
    handed_on = set(re.findall(r"\bOnnxAttrs\s+(\w+)", rest))
    without = re.sub(r"\bOnnxAttrs\s+\w+", "", _MENTION.sub("", rest))
    if "node.attribute" in rest or any(re.search(rf"\b{attrs}\b", without) for attrs in handed_on):
        found.unread.add(ANY)
    return found


def _checks(body: str, found: _Found, name: str) -> str:
    """Put into ``found`` what the body's checks ask, and return the body without all that was understood."""
    operands = {}
    for match in _ASSIGNED.finditer(body):
        variable = match["to"]
        operand = _OPERAND.fullmatch((match["value"] or match["braced"]).strip())
        if operand and len(re.findall(rf"\b{variable}\s*(?:[-+*/|&]?=[^=]|\+\+|--)", body)) <= 1:
            operands[variable] = operand
    rest = body
    for match in reversed(list(re.finditer(r"\bSTATIC_CHECK\s*(?=\()", body))):
        inside = _enclosed(body, match.end(), name)
        if not _always(body, match.start()):
            continue
        condition = _split(inside, ",")[0]
        parts = _split(condition, "&&") if len(_split(condition, "||")) == 1 else [condition]
        kept = [part for part in parts if not _understood(_bare(part), operands, found)]
        at = body.index(condition, match.end())
        rest = rest[:at] + " && ".join(kept) + rest[at + len(condition) :]
    for variable, operand in operands.items():
        if len(re.findall(rf'(?<!")\b{variable}\b(?!")', rest)) == 1:
            rest = rest.replace(operand.string, "", 1)
    return rest


def _always(body: str, position: int) -> bool:
    """Whether a statement stands in no block, behind no condition and behind no way out."""
    before = body[:position].rstrip()
    nested = before.count("{") != before.count("}")
    return not nested and (not before or before[-1] in ";}") and not re.search(r"\breturn\b", before)


def _understood(part: str, operands: dict[str, re.Match[str]], found: _Found) -> bool:
    """Put into ``found`` what one condition asks, if it is one of the forms that are known."""
    kind = _ELEMENT_TYPE.fullmatch(part)
    if outputs := _OUTPUTS.fullmatch(part):
        found.outputs = int(outputs[1])
    elif part == "false":
        found.refused = True
    elif not _MESSAGE.fullmatch(part) and not (kind and kind[1] in operands):
        return _compared(part, operands, found)
    return True


def _compared(part: str, operands: dict[str, re.Match[str]], found: _Found) -> bool:
    """Take ``!a`` and ``a == 1 || a == 2``, where ``a`` stands for one attribute or for whether it is given."""
    sides = [("0", part[1:])] if part.startswith("!") else []
    for piece in [] if sides else _split(part, "||"):
        left, _, right = _bare(piece).partition("==")
        sides.append((right, left) if _LITERAL.fullmatch(right.strip()) else (left, right))
    literals = [_literal(text) for text, _ in sides]
    asked = [operands.get(_bare(text)) or _OPERAND.fullmatch(_bare(text)) for _, text in sides]
    name = asked[0]["name"] if asked[0] else ""
    if None in literals or not asked[0] or any(not other or other["name"] != name for other in asked):
        return False
    if asked[0]["how"] == "count":
        if not any(literals):
            found.absent.add(name)
        return not any(literals)
    default = _literal(asked[0]["default"] or "")
    if default is None or default in literals:
        found.values[name] = [value for value in literals if value in found.values.get(name, literals)]
    return default is None or default in literals


def _literal(text: str) -> Any:
    """Return a constant's value, None where it is none."""
    match = _LITERAL.fullmatch(text.strip())
    if match is None:
        return None
    if match["text"] is not None:
        return match["text"]
    if match["truth"]:
        return int(match["truth"] == "true")
    return float(match["number"]) if "." in match["number"] else int(match["number"])


def _split(text: str, separator: str) -> list[str]:
    """Split outside of brackets."""
    pieces, depth, last = [], 0, 0
    for position, letter in enumerate(text):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(letter, 0)
        if depth == 0 and text.startswith(separator, position):
            pieces.append(text[last:position])
            last = position + len(separator)
    return [*pieces, text[last:]]


def _bare(text: str) -> str:
    """Take off the brackets around the whole."""
    text = text.strip()
    while text.startswith("(") and _enclosed(text, 0, text) == text[1:-1]:
        text = text[1:-1].strip()
    return text


def table_json(text: str, source: str, revision: str, tensorrt: str) -> str:
    """Return the table as JSON, one operator a line.

    Raises:
        UserError: see :func:`read_checkers`; or a revision that is no commit, or no version of TensorRT.
    """
    parse_version(tensorrt)
    return written({"source": source, "revision": revision, "tensorrt": tensorrt, **read_checkers(text)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one table."""
    write_table(arguments, table_json, "onnxOpCheckers.cpp", dated=False)


if __name__ == "__main__":
    run(main)
