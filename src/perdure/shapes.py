"""Checking that plain data have the shape that a type states.

    class Person(TypedDict):
        name: str
        age: NotRequired[Annotated[int, Rule("at least 0", lambda age: age >= 0)]]

    check_shape({"name": "Ada"}, Person, "people.json")

A type is a TypedDict, `list[X]`, `dict[str, X]`, a union, a Literal, a plain type, Any, or one of
these with a `Rule`. Whole numbers count as `float`, which must be finite, but booleans are no
numbers.
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from perdure.errors import PerdureError


LONGEST_VALUE = 60  # the longest value that an error line shows, in characters
LARGEST_NUMBER = 1 << 63  # whole numbers must be smaller
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}


@dataclass(frozen=True)
class Rule:
    """What a value must be beside its type.

    Args:
        wanted: it in words, for error lines.
        holds: returns whether a value is so.
    """

    wanted: str
    holds: Callable[[Any], bool]


def check_shape(value: Any, shape: Any, where: str, closed: bool = False) -> None:
    """Check that a value has a shape.

    Args:
        value: plain data, as JSON has them.
        shape: the type.
        where: the beginning of the error line.
        closed: whether mappings may have only the keys that their TypedDict states.

    Raises:
        PerdureError: it has not; the line names the key, what is wanted, and the value.
    """
    if problem := _checker(shape, closed)(value):
        path, text = problem
        key = ".".join(path)
        raise PerdureError(f"{where}: {key + ' ' if key else ''}{text()}")


# The path of keys to a value, and a function that says what is wrong with it.
Problem = tuple[tuple[str, ...], Callable[[], str]]
Checker = Callable[[Any], Problem | None]  # returns the first problem of a value, if any


@cache
def _checker(shape: Any, closed: bool) -> Checker:
    """Return the function that checks values of a type."""
    kind, inner, _ = _parts(shape)
    if kind is Any:
        return lambda value: None
    if kind is Union:
        return _union_checker(shape, [_checker(option, closed) for option in inner])
    if kind is Literal:
        return lambda value: None if _is_choice(value, inner) else _wrong(value, shape)
    if is_typeddict(kind):
        return _mapping_checker(kind, closed)
    return _plain_checker(shape, [_checker(option, closed) for option in inner])


def _is_choice(value: Any, choices: Sequence[Any]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _plain_checker(shape: Any, inside: Sequence[Checker]) -> Checker:
    """Return the checker of a plain type; `inside` are those of what a list or a dict holds."""
    kind, inner, rules = _parts(shape)

    def check(value: Any) -> Problem | None:
        if not _is(value, kind) or not all(rule.holds(value) for rule in rules):
            return _wrong(value, shape)
        if not inside or (kind is list and _all_are(value, inner[0])):
            return None
        if kind is dict:
            for key in value:
                if problem := inside[0](key):
                    return (_short(key),), lambda: f"is a key, and {problem[1]()}"
        for key, part in value.items() if kind is dict else enumerate(value):
            if problem := inside[-1](part):
                return (_short(key), *problem[0]), problem[1]
        return None

    return check


def _all_are(values: list[Any], kind: Any) -> bool:
    """Return whether all values of a list, which may be long, are of the type `str` or `float`."""
    if kind not in (str, float) or set(map(type, values)) != {kind}:
        return False
    return kind is str or all(map(math.isfinite, values))


def _is(value: Any, kind: type) -> bool:
    """Return whether a value is of a plain type, and if it is a number, whether it is usual."""
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and abs(value) < LARGEST_NUMBER
    return isinstance(value, kind) and (kind is not float or math.isfinite(value))


def _union_checker(shape: Any, options: Sequence[Checker]) -> Checker:
    """Return the checker of a value that may have several types.

    If a value has one of these types, but something in it is wrong, that is the problem.
    """

    def check(value: Any) -> Problem | None:
        inside = None
        for option in options:
            problem = option(value)
            if problem is None:
                return None
            inside = problem if problem[0] else inside
        return inside or _wrong(value, shape)

    return check


def _mapping_checker(kind: Any, closed: bool) -> Checker:
    """Return the checker of a TypedDict."""
    hints = get_type_hints(kind, include_extras=True)
    wrapped = (NotRequired, Required)
    shapes = {k: get_args(h)[0] if get_origin(h) in wrapped else h for k, h in hints.items()}
    checkers = {key: _checker(shape, closed) for key, shape in shapes.items()}
    required = sorted(kind.__required_keys__)

    def check(value: Any) -> Problem | None:
        if not isinstance(value, dict):
            return _wrong(value, dict)
        for key in required:
            if key not in value:
                return (), partial("has no key {!r}".format, key)
        for key, part in value.items():
            if key in checkers:
                if problem := checkers[key](part):
                    return (key, *problem[0]), problem[1]
            elif closed:
                return (), partial(
                    "has a key {}, which this version does not know".format, _short(key)
                )
        return None

    return check


def _parts(shape: Any) -> tuple[Any, tuple[Any, ...], tuple[Rule, ...]]:
    """Return what a type is, the types inside of it, and its rules."""
    origin = get_origin(shape)
    if origin is Annotated:
        inner, *rules = get_args(shape)
        kind, parts, more = _parts(inner)
        return kind, parts, (*more, *rules)
    if origin in (Union, types.UnionType):
        return Union, get_args(shape), ()
    if shape is None:
        return type(None), (), ()
    return origin or shape, get_args(shape), ()


def _wrong(value: Any, shape: Any) -> Problem:
    return (), lambda: f"must be {_in_words(shape)}, got {_short(value)}"


def _in_words(shape: Any) -> str:
    kind, inner, rules = _parts(shape)
    if rules:
        return rules[-1].wanted
    if kind is Union:
        return " or ".join(map(_in_words, inner))
    if kind is Literal:
        return " or ".join(map(repr, inner))
    return "a mapping" if is_typeddict(kind) else _WORDS.get(kind, str(kind))


def _short(value: Any) -> str:
    """Return a value as text for an error line."""
    if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
        return "a number of more than 63 bits"
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
