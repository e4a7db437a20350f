"""Templates by a grammar that knows what makes time and memory grow."""

# ruff: noqa: E501

from __future__ import annotations

from random import Random

from fuzz.mutate import text
from processing.templates import HOSTILE, USUAL

_FILTERS = [
    "abs",
    "attr('x')",
    "batch(3)",
    "batch(999999999,'x')",
    "capitalize",
    "center(9)",
    "center(99999999)",
    "count",
    "default('x')",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format('a')",
    "groupby('role')",
    "indent",
    "indent(99999999)",
    "int",
    "items",
    "join",
    "join('ab')",
    "last",
    "length",
    "list",
    "lower",
    "map('upper')",
    "map(attribute='role')",
    "map('center',9999)",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr('role')",
    "replace('a','aa')",
    "replace('','xxxxxxxxx')",
    "reverse",
    "round",
    "round(99999,'ceil')",
    "safe",
    "select",
    "selectattr('role','equalto','user')",
    "slice(3)",
    "slice(99999999)",
    "sort",
    "string",
    "striptags",
    "sum",
    "sum(start=[])",
    "title",
    "tojson",
    "tojson(indent=9999)",
    "trim",
    "truncate(9)",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap(1)",
    "xmlattr",
]
_METHODS = [
    "center(99999999)",
    "count('a')",
    "encode()",
    "endswith('a')",
    "expandtabs(9999999)",
    "find('a')",
    "format(a,b)",
    "format_map({'a':a})",
    "get('role')",
    "items()",
    "join(['a','b'])",
    "join(a)",
    "keys()",
    "ljust(999999999)",
    "lower()",
    "lstrip()",
    "partition('a')",
    "replace('a','aa')",
    "rsplit()",
    "rstrip()",
    "split('')",
    "split('a')",
    "splitlines()",
    "startswith('a')",
    "strip('x')",
    "swapcase()",
    "title()",
    "to_bytes(99999999,'big')",
    "upper()",
    "values()",
    "zfill(99999999)",
    "copy()",
    "index(1)",
    "append(1)",
    "clear()",
    "pop()",
    "update(a)",
    "__class__",
    "bit_length()",
    "translate({})",
]
_ATOMS = [
    "a",
    "b",
    "c",
    "ns",
    "ns.s",
    "ns.l",
    "ns.n",
    "messages",
    "messages[0].content",
    "messages[-1]['role']",
    "loop.index",
    "loop.length",
    "loop",
    "self",
    "caller",
    "1",
    "0",
    "-1",
    "99999999999999999999",
    "3.5",
    "1e308",
    "'ab'",
    "''",
    "'%99999999d'",
    "'%*d'",
    "'%s%s'",
    "'{0:>99999999}'",
    "'{0}{0}'",
    "'é\\ud83d'",
    "[]",
    "[1,2]",
    "[a,a]",
    "{}",
    "{'a':a,'b':a}",
    "(a,b)",
    "range(9)",
    "range(99999)",
    "range(0,99999,7)",
    "none",
    "true",
    "undefined_name",
    "namespace(s=a)",
    "dict(a=a)",
    "cycler(a,b)",
    "joiner(a)",
    "lipsum()",
    "raise_exception(a)",
    "strftime_now('%Y')",
    "strftime_now('%9999999d')",
    "bos_token",
    "m(a)",
    "m",
    "loop(a)",
    "super()",
    "self.k()",
]


def source(random: Random) -> str:
    """Return one template."""
    kind = random.random()
    if kind < 0.15:
        return text(random, random.choice(list(USUAL.values())))
    if kind < 0.25:
        return text(random, random.choice(HOSTILE))
    head = (
        "{% set ns = namespace(s='ab', l=[1], n=2) %}{% set a = 'ab' %}{% set b = [1, 'x'] %}{% set c = 3 %}"
    )
    return head + "".join(_statement(random, 3) for _ in range(random.randrange(1, 6)))


def _expression(random: Random, depth: int) -> str:
    kind = random.random()
    if depth <= 0 or kind < 0.25:
        return random.choice(_ATOMS)
    one = _expression(random, depth - 1)
    if kind < 0.45:
        return f"({one})|{random.choice(_FILTERS)}"
    if kind < 0.55:
        return f"({one}).{random.choice(_METHODS)}"
    other = _expression(random, depth - 1)
    if kind < 0.8:
        return f"({one}) {random.choice(('+', '-', '*', '/', '//', '%', '**', '~', '==', '<', 'in', 'and', 'or'))} ({other})"
    if kind < 0.86:
        return f"[{one}, {other}]"
    if kind < 0.9:
        return f"({one})[{other}]"
    if kind < 0.94:
        return f"({one})[::{random.choice((1, -1, 2))}]"
    if kind < 0.97:
        return f"{one} if {other} else {one}"
    return f"({one}) is {random.choice(('string', 'iterable', 'mapping', 'defined', 'none', 'divisibleby(3)', 'in([1])'))}"


def _statement(random: Random, depth: int) -> str:
    kind, e = random.random(), _expression(random, 3)
    if depth <= 0 or kind < 0.25:
        return "{{ " + e + " }}"
    if kind < 0.45:
        target = random.choice(("a", "b", "c", "ns.s", "ns.l", "ns.n", "a, b"))
        return (
            "{% set "
            + target
            + " = "
            + random.choice((e, f"{target} + {target}", f"[{target}, {target}]"))
            + " %}"
        )
    inner = "".join(_statement(random, depth - 1) for _ in range(random.randrange(1, 3)))
    if kind < 0.7:
        recursive = random.choice(("", "", " recursive", " if a"))
        return (
            "{% for a in "
            + random.choice((e, "range(99999)", "range(300)"))
            + recursive
            + " %}"
            + inner
            + "{% endfor %}"
        )
    if kind < 0.78:
        return "{% if " + e + " %}" + inner + "{% else %}x{% endif %}"
    if kind < 0.86:
        return (
            "{% macro m(a) %}"
            + inner
            + random.choice(("", "{{ m(a) }}{{ m(a) }}"))
            + "{% endmacro %}{{ m(b) }}"
        )
    if kind < 0.9:
        return "{% set a %}" + inner + "{% endset %}"
    if kind < 0.93:
        return "{% filter " + random.choice(_FILTERS) + " %}" + inner + "{% endfilter %}"
    if kind < 0.96:
        return "{% call m(a) %}" + inner + "{% endcall %}"
    return "{% block k %}" + inner + "{% endblock %}"
