"""Seeded changes to JSON, text and bytes, and the values that readers trip over."""

# ruff: noqa: E501

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 1 << 24, 1 << 31, 1 << 63, 10**30, 10**38, -(10**18), 0.5, -0.5, 1e308, 1e-308,
    "", " ", "\0", "\ud83d", "\udcff", "x" * 300, "x" * 70_000, "../../etc/passwd", "/dev/zero", "/", "a/b", "a\\b",
    "\x1b[2J", "\u2028", "<image>", "</s>", "%s{0}{{", "1", "none", "float32", "NaN", "[/x]", "[red]a\\\\", [], {}, [[]], [None], {"a": {}},
    [0, (1 << 24) - 1], [[0, (1 << 24) - 1]] * 50, ["a", 1], [1 << 63], {"": 0},
]  # fmt: skip
TEXTS = [
    "NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "[" * 100_000, '{"a":' * 2000, "]", "}", ",", '"', ":", "\\",
    "\\ud83d", "\ud83d", "\0", "\ufeff", "\x1b", "\u2028", "null", "-", "0x10", "'", "{{", "}}", "{%", "%}", "{#",
    "é", "\U0001f600", " " * 1000, "\n", "\r", "<image>", "</s>",
]  # fmt: skip


def change(random: Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to three changes at random places."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _change(random, value)
    return value


def _change(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.92:
        name = random.choice(list(value))
        kind = random.random()
        if kind < 0.06:
            del value[name]
        elif kind < 0.1:
            value[str(random.choice(VALUES))] = value.pop(name)
        elif kind < 0.13:
            value[str(random.choice(VALUES))] = copy.deepcopy(value[random.choice(list(value))])
        else:
            value[name] = _change(random, value[name])
        return value
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        kind = random.random()
        if kind < 0.08:
            del value[at]
        elif kind < 0.16:
            value.insert(at, copy.deepcopy(value[at]))
        elif kind < 0.18:
            value *= random.choice((0, 2, 50))
        else:
            value[at] = _change(random, value[at])
        return value
    if random.random() < 0.25:
        if isinstance(value, (int, float)):
            return random.choice(
                (-value, value + 1, value - 1, value * 2, value * 10**6, value / 3, str(value))
            )
        if isinstance(value, str):
            return text(random, value)
    if random.random() < 0.05:
        for _ in range(random.choice((1, 70, 400))):
            value = random.choice(([value], {"a": value}))
        return value
    return copy.deepcopy(random.choice(VALUES))


def dumped(random: Random, value: Any) -> bytes:
    """Return a changed JSON value as bytes, which one time in five are changed, too."""
    written = json.dumps(change(random, value), ensure_ascii=random.random() < 0.5)
    if random.random() < 0.15:
        written = text(random, written)
    data = written.encode("utf-8", "surrogatepass")
    return flipped(random, data) if random.random() < 0.05 else data


def text(random: Random, value: str) -> str:
    """Return a text with a few parts put in, cut out, doubled or moved."""
    for _ in range(random.choice((1, 1, 2, 5))):
        a, b = sorted(random.randrange(len(value) + 1) for _ in range(2))
        b = min(b, a + random.choice((1, 5, 50)))
        part = random.choice(
            (random.choice(TEXTS), "", value[a:b] * 2, chr(random.choice((9, 127, 233, 0xE000, 0x1F600))))
        )
        value = value[:a] + part + value[b:]
    return value


def flipped(random: Random, data: bytes) -> bytes:
    """Return bytes with a few flipped, cut, doubled or overwritten."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        at = random.randrange(len(changed))
        kind = random.random()
        if kind < 0.4:
            changed[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind < 0.6:
            width = random.choice((2, 4, 8))
            changed[at : at + width] = random.choice((b"\xff", b"\0", b"\x7f")) * width
        elif kind < 0.75:
            del changed[at:]
        elif kind < 0.9:
            end = at + random.choice((1, 8, 64, 1024))
            changed[at:at] = changed[at:end] * random.choice((1, 3))
        else:
            del changed[at : at + random.choice((1, 4, 40))]
    return bytes(changed)
