"""Jinja2's sandbox with a budget: a template cannot work without end or take memory without end.

Jinja2's own sandbox keeps a template away from the process. What it leaves open fits in one line:
`'x' * 10**9`, a list of lists doubled forty times and printed. Here every value that a template
makes, compares or prints is weighed, every line that it runs is counted, and all comes out of one
budget. It counts work, not seconds: a busy machine refuses no template that an idle one renders.

The vocabulary is closed: the filters and methods that chat templates use (llama.cpp's own engine
knows few others), none that pads (`center`, `format`), raises to powers, hashes what a template can
make hash alike (`unique`) or throws dice (`random`, `lipsum`: no two prompts would begin alike).

Knows no chat (`jinja` does) and no syntax (`weighable` does).
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
    ValuesView,
)
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from rag.llm.local.weighable import MAX_BITS, make_weighable

_SHALLOW_FILTERS = frozenset(
    "count d default first items last length map reject rejectattr select selectattr".split()
)
"""They look at a container, not into it, so its length is their weight."""
_DEEP_FILTERS = frozenset(
    "abs capitalize dictsort float groupby indent int join list lower max min replace reverse sort"
    " string title trim upper".split()
)
_DEEP_TESTS = frozenset(
    "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in lower upper".split()
)
_METHODS = frozenset(
    "capitalize copy count endswith find get index isalnum isalpha isdigit islower isnumeric"
    " isspace istitle isupper items join keys lower lstrip partition removeprefix removesuffix"
    " replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase"
    " title upper values".split()
)
_APART = frozenset("groupby indent join list rsplit sort split splitlines title".split())
"""They make an object, of up to 80 bytes, out of each character."""
_QUADRATIC = frozenset("lstrip rfind rindex rpartition rsplit rstrip strip trim".split())
"""They may compare each character with each of the other text (the forward searches do not)."""
_VALUES = (str, bytes, int, float, list, tuple, dict, set, frozenset, range)
_VIEWS = (KeysView, ValuesView, ItemsView)
_CONTAINERS = (list, tuple, dict, set, frozenset, range, *_VIEWS)
_CONTEXTS = (jinja2.Environment, nodes.EvalContext, Context)


class Exhausted(BaseException):
    """The budget is spent; no `except Exception` of Jinja2 may swallow it."""


class _Work(threading.local):
    """What is left of the budget of the rendering that this thread is at."""

    left = 0


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, in which work and memory are counted."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, extensions: Sequence[type[Extension]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            optimized=False,  # else constant expressions are worked out while compiling
            finalize=_shown,
        )
        self._work = _Work()
        known = self.filters
        own: dict[str, Callable[..., Any]] = {
            "~": lambda parts: self.concat(map(str, parts)),
            "[:]": lambda whole, start, stop, step: whole[start:stop:step],
            "{}": _dictionary,
            "tojson": self._json,
            "safe": str,  # nothing is escaped, so there is nothing to keep from it
        }
        self.filters = {name: self._weighing(name, known[name]) for name in _DEEP_FILTERS}
        self.filters |= {name: self._weighing(name, f) for name, f in own.items()}
        self.filters |= {name: self._counting(known[name]) for name in _SHALLOW_FILTERS}
        self.filters["[]"] = self._counting(lambda literal: literal)
        tests: dict[str, Any] = self.tests
        self.tests = tests | {name: self._weighing(name, tests[name]) for name in _DEEP_TESTS}
        self.globals = {
            "range": self.globals["range"],
            "namespace": _Namespace,
            "dict": lambda values=None, **more: {**(values or {}), **more},
        }

    @contextlib.contextmanager
    def counted(self, budget: int) -> Iterator[None]:
        """Count each line of Python that runs in this thread, ours and the weighing excepted."""
        work, outer = self._work, sys.gettrace()
        work.left = budget

        def trace(frame: FrameType, _event: str, _arg: object) -> Any:
            if frame.f_code.co_filename == __file__:
                return None
            work.left -= 1
            if work.left < 0:
                raise Exhausted
            return trace

        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(outer)

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a text, which ends when it grows too long."""
        texts = []
        for part in parts:
            self._charge(1 + len(part) // 16)
            texts.append(part)
        return "".join(texts)

    def weighed(self, value: Any) -> Any:
        """Return the value, after its size was taken off the budget."""
        if isinstance(value, str):
            self._charge(len(value) // 16)
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise SecurityError(f"a number of {value.bit_length()} bits")
        elif isinstance(value, _CONTAINERS):
            self._charge(self._size(value))
        return value

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or a method of the closed vocabulary."""
        self._charge(len(args) + len(kwargs))
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps `str.format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, _VALUES):
            if name not in _METHODS:
                raise SecurityError(f"no chat template needs the method {name!r}")
            args = _read(args)
            self._charge_growth(name, (self.weighed(owner), *args))
        for value in (*args, *kwargs.values()):
            self.weighed(value)
        return self.weighed(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, where the result cannot be large without its operands being so."""
        self.weighed((left, right))
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"no chat template needs the operator {operator!r}")
        if operator == "-" and isinstance(left, _VIEWS):
            raise SecurityError("no chat template needs the difference of two sets")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    each = 16 if isinstance(value, str) else 1
                    self._charge(len(value) * max(times, 0) // each)
        result = super().call_binop(context, operator, left, right)
        return self.weighed(result) if isinstance(result, int) else result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up by name or number only: the hash of nested tuples may take for ever."""
        if isinstance(argument, (str, int)):
            return super().getitem(obj, argument)
        return self.undefined(obj=obj, name=f"a {type(argument).__name__}")

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        make_weighable(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def _size(self, container: Any) -> int:
        """Count what a text of the container would repeat, until it is more than is left."""
        inside, size = [container], 0
        while inside and size <= self._work.left:
            item = inside.pop()
            if isinstance(item, str):
                size += len(item) // 16
            elif isinstance(item, _CONTAINERS):
                size += 1 + len(item)
                inside += () if isinstance(item, range) else item
                if isinstance(item, dict):
                    inside += item.values()
        return size

    def _charge(self, work: int) -> None:
        self._work.left -= max(work, 0)  # a width may be negative: nothing is paid back
        if self._work.left < 0:
            raise Exhausted

    def _charge_growth(self, name: str, args: Sequence[Any]) -> None:
        """Charge beforehand for what may take more than its arguments' sizes, in any order."""
        lengths = sorted(len(value) for value in args if isinstance(value, (str, *_CONTAINERS)))
        product = lengths[-2] * lengths[-1] if len(lengths) > 1 else 0
        if name in _APART:
            self._charge(sum(len(value) for value in args if isinstance(value, str)))
        if name in _QUADRATIC:
            self._charge(product // 1024)
        if name == "join":
            self._charge(product // 16)
        elif name == "replace" and len(args) > 2:
            texts = [str(value) for value in args]
            times = max(texts[0].count(text) for text in texts[1:])
            self._charge(times * max(len(text) for text in texts[1:]) // 16)
        elif name == "indent" and len(args) > 1:
            widths = [a if isinstance(a, int) else len(str(a)) for a in args[1:]]
            self._charge(len(str(args[0]).splitlines()) * max(widths) // 16)

    def _json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON as transformers does: without the escapes that HTML needs."""
        self._charge(indent if isinstance(indent, int) else 0)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return self.concat(encoder.iterencode(value))

    def _weighing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Weigh what a filter or test is given and makes; a generator is read first."""

        def run(*args: Any, **kwargs: Any) -> Any:
            args = _read(args)
            for value in (*args, *kwargs.values()):
                self.weighed(value)
            given = args[1:] if args and isinstance(args[0], _CONTEXTS) else args
            self._charge_growth(name, (*given, *kwargs.values()))
            return self.weighed(function(*args, **kwargs))

        return functools.update_wrapper(run, function)  # with Jinja2's marks

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the elements of what a filter is given."""

        def run(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                if isinstance(value, (str, *_CONTAINERS)):
                    self._charge(1 + len(value) // 4)
            return function(*args, **kwargs)

        return functools.update_wrapper(run, function)


class _Namespace(Namespace):
    """Jinja2's, without the names by which an object says how Jinja2 is to call it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be an attribute
        self, *given = args
        if not all(isinstance(pairs, dict) for pairs in given):  # keys that nobody has weighed
            raise SecurityError("a namespace is made of names and values, or of a dictionary")
        for name in dict(*given, **kwargs):
            _check_name(name)
        Namespace.__init__(self, *given, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # what is in it would go unweighed


def _check_name(name: str) -> None:
    if name.startswith(("_", "jinja_")):
        raise SecurityError(f"a namespace may not have an attribute {name!r}")


@pass_context  # which also keeps Jinja2 from writing constants while it compiles
def _shown(context: Context, value: Any) -> Any:
    sandbox = context.environment
    assert isinstance(sandbox, Sandbox)
    return sandbox.weighed(value)


def _read(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn generators into lists, which can be weighed."""
    return tuple(list(value) if isinstance(value, Iterator) else value for value in args)


def _dictionary(pairs: list[list[Any]]) -> dict[Any, Any]:
    for key, _ in pairs:
        if not isinstance(key, (str, int)):
            raise SecurityError(f"a dictionary may not have a key of type {type(key).__name__}")
    return dict(pairs)
