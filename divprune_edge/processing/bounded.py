"""A Jinja sandbox in which work is paid for before it is done, so that no template takes long or much memory.

Jinja's own sandbox keeps a template from everything but its arguments; it bounds neither time nor memory. Here every
operation whose result can be larger than what it is made of (``*``, ``+``, ``~``, ``%``, ``**``, literals of lists,
filters, methods of texts, the output) first pays the size of that result, every pass of a loop and every call pays a
step, and nothing else can be called. So each single operation is short, and between them the processor time of the
thread is looked at: a second limit that needs neither signals nor another process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from string import Formatter
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

STEP = 16
"""Units of one pass, call or element; a character is one unit."""
ALLOWANCE, PER_INPUT = 8_000_000, 128
"""Units of one rendering, and further ones for each unit of its arguments. A usual template takes some thousands."""
SECONDS = 1.0
"""Processor time of one rendering, on the thread that renders. A usual template takes about a millisecond."""
MOST_SOURCE = 100_000
"""Characters of a template; the longest in use have about 20,000."""

_DEEPEST = 64
_WIDEST = 10_000
_MOST_BITS = 4096
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_HOLDING: tuple[Any, ...] = (list, tuple, set, frozenset, *_VIEWS)
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


class TooMuchWork(TemplateError):
    """A template wants more time or memory than any prompt needs."""


class Budget:
    """What a rendering may still spend."""

    def __init__(self, units: int = ALLOWANCE, seconds: float = SECONDS) -> None:
        self.left = units
        self._ends = time.thread_time() + seconds
        self._calls = 0

    def spend(self, units: int) -> None:
        """Pay ``units``.

        Raises:
            TooMuchWork: there are not so many left, or the time is over.
        """
        self.left -= units
        if self.left < 0:
            raise TooMuchWork("it does more work than any prompt needs")
        self._calls += 1
        if (units > 4096 or not self._calls % 64) and time.thread_time() > self._ends:
            raise TooMuchWork(f"it takes more than {SECONDS:g} s of processor time")

    def pay(self, value: Any) -> Any:
        """Pay the size of ``value`` and return it."""
        self.spend(size(value, self.left))
        return value


_BUDGET: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget(arguments: Any = ()) -> Iterator[None]:
    """Let templates of a :class:`BoundedEnvironment` be compiled and rendered, within one budget."""
    token = _BUDGET.set(Budget(ALLOWANCE + PER_INPUT * size(arguments)))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def size(value: Any, most: int = 1 << 40) -> int:
    """Return the units of a value, where what is in it twice counts twice; it is written out like that.

    Raises:
        TooMuchWork: more than ``most``, or nested too deep.
        SecurityError: a namespace inside of something else, which could be filled after it was counted.
    """
    total, level = 0, [value]
    for depth in range(_DEEPEST):
        inner: list[Any] = []
        for item in level:
            total += 1
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, Mapping):
                total += 2 * STEP * len(item)
            elif isinstance(item, _HOLDING):
                total += STEP * len(item)
            elif isinstance(item, int):
                total += item.bit_length() // 3
            elif isinstance(item, Namespace) and depth:
                raise SecurityError("a namespace inside of a list, dictionary or namespace")
            else:
                continue
            if total > most:
                raise TooMuchWork("it makes something larger than any prompt")
            if isinstance(item, Mapping):
                inner.extend(item.keys())
                inner.extend(item.values())
            elif not isinstance(item, (str, int)):
                inner.extend(item)
        if not inner:
            return total
        level = inner
    raise TooMuchWork("it nests lists too deep")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Templates are compiled and rendered inside of :func:`budget`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, **options)
        del self.globals["lipsum"]
        for name in _UNBOUNDED:
            del self.filters[name]
        for name, function in self.filters.items():
            self.filters[name] = _bounded(name, function)

    def provide(self, name: str, function: Callable[..., Any]) -> None:
        """Add a function that templates may call; what it does must be bounded."""
        self.globals[name] = function

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter."""
        self.filters[name] = _bounded(name, function)

    def _generate(self, source: nodes.Template, *rest: Any, **options: Any) -> str:
        return super()._generate(_Paying().visit(source), *rest, **options)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a template, a block or a macro has written."""
        spend = _BUDGET.get().spend

        def paid() -> Iterator[str]:
            for piece in pieces:
                spend(len(piece) + 1)
                yield piece

        return "".join(paid())

    @staticmethod
    def counted(values: Any) -> Iterator[Any]:
        """Iterate over ``values``, paying for each."""
        return _counted(iter(values))

    @staticmethod
    def paid(value: Any) -> Any:
        """Pay for a value that was just made, or that is about to become part of a text."""
        return _BUDGET.get().pay(value)

    @staticmethod
    def stored(value: Any) -> Any:
        """Pay for what becomes part of a namespace."""
        _BUDGET.get().pay((value,))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for the result of an operator, and make it."""
        spend = _BUDGET.get().spend
        spend(STEP)
        if operator == "%" and isinstance(left, str):
            spend(_printf(left, right))
        elif isinstance(left, (int, float)) and isinstance(right, (int, float)):
            _check_number(operator, left, right)
        elif operator == "*":
            count, value = (left, right) if isinstance(left, int) else (right, left)
            spend(size(value) * max(count, 0) if isinstance(count, int) else 0)
        else:
            spend(size(left) + size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template may call, and pay for it."""
        if __obj in (self.counted, self.paid, self.stored):
            return __obj(*args)
        account = _BUDGET.get()
        account.spend(STEP)
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, BuiltinMethodType) and isinstance(owner, (str, list, tuple, dict)):
            account.spend(_method(owner, __obj.__name__, args, kwargs))
            return account.pay(super().call(__context, __obj, *args, **kwargs))
        if isinstance(__obj, LoopContext):
            args = tuple(map(self.counted, args))
        elif __obj in (dict, Namespace, Cycler, Joiner):
            account.pay((args, {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}))
        elif not self._callable(__obj, owner):
            raise SecurityError(f"{type(__obj).__name__} {getattr(__obj, '__name__', '')!r} cannot be called")
        return super().call(__context, __obj, *args, **kwargs)

    def _callable(self, obj: Any, owner: Any) -> bool:
        if isinstance(obj, (Macro, BlockReference, Joiner, Undefined, _Format)):
            return True
        if isinstance(obj, MethodType):
            return isinstance(owner, (LoopContext, Cycler))
        return isinstance(obj, FunctionType) and any(obj is known for known in self.globals.values())

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the bounded form of a text's ``format`` and ``format_map``."""
        function = super().wrap_str_format(value)
        return None if function is None else _Format(value.__self__, function)


class _Format:
    """A text's ``format``, which pays."""

    def __init__(self, text: str, function: Callable[..., str]) -> None:
        self._text, self._function = text, function

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        each = size((args, kwargs))
        for _, field, spec, _ in Formatter().parse(self._text):
            if spec and ("{" in spec or _too_wide(spec)):
                raise TooMuchWork("it formats with a width that no prompt needs")
            _BUDGET.get().spend(0 if field is None else each + _WIDEST)
        return str(_BUDGET.get().pay(self._function(*args, **kwargs)))


class _Paying(NodeTransformer):
    """Put the environment's own functions around what a template makes without calling anything."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja's names
        self.generic_visit(node)
        node.iter = _hook("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:  # noqa: N802 - Jinja's names
        self.generic_visit(node)
        node.nodes = [_hook("paid", operand) for operand in node.nodes]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:  # noqa: N802 - Jinja's names
        self.generic_visit(node)
        if node.target.find(nodes.NSRef) or isinstance(node.target, nodes.NSRef):
            node.node = _hook("stored", node.node)
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:  # noqa: N802 - Jinja's names
        self.generic_visit(node)
        return _hook("paid", node) if getattr(node, "ctx", "load") == "load" else node

    visit_Dict = visit_Tuple = visit_List  # noqa: N815


def _hook(name: str, argument: Any) -> nodes.Call:
    line = argument.lineno
    call = nodes.Call(nodes.EnvironmentAttribute(name, lineno=line), [argument], [], None, None, lineno=line)
    call.set_environment(argument.environment)
    return call


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    account = _BUDGET.get()
    for value in values:
        account.spend(STEP)
        yield value


def _written(value: Any) -> Any:
    """Pay for what is written out."""
    if isinstance(value, str):
        return value  # paid for when it was made, and again when all is joined
    _BUDGET.get().pay(value)
    return _BUDGET.get().pay(str(value)) if isinstance(value, (list, tuple, Mapping, *_VIEWS)) else value


# Filters whose time or memory is not bounded by anything that could be counted here; no chat template uses them.
_UNBOUNDED = ("pprint", "random", "urlize", "wordwrap", "xmlattr")
# These run Python for each character or element.
_SLOW = {
    "title",
    "urlencode",
    "indent",
    "striptags",
    "slice",
    "batch",
    "dictsort",
    "groupby",
    "sort",
    "unique",
}
# These look at one element, or at each only when it is asked for.
_CHEAP = {"attr", "count", "d", "default", "first", "items", "last", "length", "map", "reject", "rejectattr"}
_CHEAP |= {"select", "selectattr"}
_MULTIPLYING = {"indent", "join", "tojson", "slice", "batch"}
_LAZY = (str, int, float, list, tuple, Mapping, range, Undefined, type(None))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pays before and after."""
    skip = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def paying(*args: Any, **kwargs: Any) -> Any:
        account = _BUDGET.get()
        value, rest = args[skip], [*args[skip + 1 :], *kwargs.values()]
        if name in _MULTIPLYING and not isinstance(value, _LAZY):
            value = list(value)
        units = STEP + (STEP * len(value) if isinstance(value, range) else 0)
        units += 0 if name in _CHEAP else size(value, account.left)
        options = size(rest, account.left)
        _check_width(rest)
        if name in _MULTIPLYING:
            units *= 1 + sum(abs(x) if isinstance(x, int) else size(x) for x in rest)
        elif name == "replace":
            units += _replaced(str(value), rest)
        elif name == "format":
            units += _printf(str(value), kwargs or tuple(rest))
        elif name == "sum" and not all(isinstance(x, (int, float, str, type(None))) for x in rest):
            raise TooMuchWork("it sums what are no numbers")
        account.spend((units + options) * (8 if name in _SLOW else 1))
        result = function(*args[:skip], value, *args[skip + 1 :], **kwargs)
        if isinstance(result, Iterator):
            return _counted(result)
        return result if name in _CHEAP else account.pay(result)

    return paying


_METHODS = {
    str: (  # noqa: SIM905
        "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha isascii "
        "isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip "
        "partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
        "startswith strip swapcase title upper zfill"
    ).split(),
    list: ["copy", "count", "index"],
    tuple: ["count", "index"],
    dict: ["copy", "get", "items", "keys", "values"],
}


def _method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return what a method of a text, list or dictionary costs."""
    kind: Any = next(kind for kind in _METHODS if isinstance(owner, kind))
    if name not in _METHODS[kind]:
        raise SecurityError(f"method {name!r} of {kind.__name__!r} cannot be called")
    if kind is dict:
        return STEP
    if kind is not str:
        return size(owner) + size(args)
    rest = [*args, *(value for key, value in kwargs.items() if not key.startswith("_"))]
    _check_width(rest)
    units = size(owner) + size(rest)
    if name == "replace":
        return units + _replaced(owner, rest)
    if name == "join":
        return units + len(owner) * (len(rest[0]) if rest and hasattr(rest[0], "__len__") else _WIDEST)
    if name == "expandtabs":
        return units + int(owner.count("\t")) * max([8, *(x for x in rest if isinstance(x, int))])
    return units + sum(abs(x) for x in rest if isinstance(x, int))


def _check_width(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _WIDEST for value in values):
        raise TooMuchWork("it asks for a width that no prompt needs")


def _check_number(operator: str, left: Any, right: Any) -> None:
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
    if bits > _MOST_BITS:
        raise TooMuchWork("it computes with a number that no prompt needs")


def _replaced(text: str, rest: list[Any]) -> int:
    """Return what ``text.replace(*rest)`` adds at most."""
    old, new = ([*map(str, rest[:2]), "", ""])[:2]
    return text.count(old) * len(new)


def _printf(text: str, values: Any) -> int:
    """Return what ``text % values`` costs."""
    conversions = _CONVERSION.findall(text)
    if any(width == "*" or _too_wide(width) for pair in conversions for width in pair):
        raise TooMuchWork("it formats with a width that no prompt needs")
    return len(text) + sum(size(values) + _width(pair) for pair in conversions)


def _width(pair: tuple[str, str]) -> int:
    return sum(int(width) for width in pair if width)


def _too_wide(spec: str) -> bool:
    return any(len(digits) > 4 for digits in re.findall(r"\d+", spec))
