"""What every function of a verb does to the call: it checks the arguments, and leaves no trace.

The arguments are checked against the signature, because Python does not: a stage number from a
table may be 1.0, a path a `Path` where a name is wanted, and a generator would be read once.
"""

import functools
import inspect
import operator
import os
import random
import reprlib
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from perdure.errors import PerdureError
from perdure.parsing import without_nulls
from perdure.writing import in_one_line


Verb = TypeVar("Verb", bound=Callable[..., Any])

IN_WORDS = {
    type(None): "None",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    dict: "a mapping",
    Mapping: "a mapping",
    Sequence: "a list",
    Callable: "a function",
}
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60
SHORT.maxdict = SHORT.maxlist = SHORT.maxtuple = 4
FRESH_TORCH = 67280421310721  # the seed of torch's generators in a new process

_one_at_a_time = threading.RLock()


def short(value: Any) -> str:
    """Return a value as Python writes it, in one line and cut if it is long."""
    return " ".join(SHORT.repr(value).split())


class _WrongTypeError(Exception):
    """A value does not have a type."""


def checked(verb: Verb) -> Verb:
    """Check the arguments of a verb's function against its signature, and convert what is meant.

    Numbers of NumPy become Python's, other paths `Path` or text, and iterables lists. A `Lineage`
    stands for its folder.

    Raises:
        PerdureError: when it is called, if an argument has another type, or if a file cannot be
            written or read.
    """
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            bound.arguments[name] = _argument(value, parameter, verb.__name__)
        try:
            return verb(*bound.args, **bound.kwargs)
        except Exception as error:
            line = None if isinstance(error, PerdureError) else in_one_line(error)
            if line is None:
                raise
            raise PerdureError(line) from error

    return cast(Verb, call)


def _argument(value: Any, parameter: inspect.Parameter, verb: str) -> Any:
    kinds = _kinds(parameter.annotation)
    where = f"{verb}: {parameter.name}"
    if value is parameter.default:
        return value
    if Sequence in map(_origin, kinds):
        _check_table(value, where)
    if Path in kinds:
        value = value.path if hasattr(value, "ledger") else value
        if isinstance(value, str | Path) and "\0" in str(value):
            raise PerdureError(f"{where}: a path has no null character, got {str(value)!r}")
    for kind in kinds:
        try:
            return _as(kind, value, where)
        except _WrongTypeError:
            continue
    wanted = " or ".join(dict.fromkeys(_in_words(kind) for kind in kinds))
    raise PerdureError(f"{where} must be {wanted}, got {short(value)}")


def _kinds(annotation: Any) -> list[Any]:
    """Return the members of a union, a path first and a list last, as both take other values."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    members = list(get_args(annotation)) if is_union else [annotation]
    return sorted(members, key=lambda kind: (_origin(kind) is Sequence, kind is not Path))


def _origin(kind: Any) -> Any:
    return get_origin(kind) or kind


def _as(kind: Any, value: Any, where: str) -> Any:
    """Return a value as one of a kind.

    Raises:
        _WrongTypeError: it is of another.
    """
    origin = _origin(kind)
    read = READERS.get(origin)
    if read is not None:
        return read(value)
    if origin is Sequence:
        return _as_list(value, get_args(kind), where)
    if origin is Literal:
        if isinstance(value, str):  # the verb names the nearest choice
            return value
    elif origin is Callable:
        if callable(value):
            return value
    elif not isinstance(kind, type) or isinstance(value, kind):
        return value
    raise _WrongTypeError


def _as_list(value: Any, items: tuple[Any, ...], where: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _WrongTypeError
    values = list(value)
    if hasattr(value, "features"):  # a `datasets.Dataset`, whose columns have a type
        values = [without_nulls(record) for record in values]
    if not items or items[0] not in (int, float, str):
        return values
    try:
        return [_as(items[0], item, where) for item in values]
    except _WrongTypeError:
        wanted = _in_words(items[0])
        raise PerdureError(
            f"{where} must be a list, and each item {wanted}; got {short(values)}"
        ) from None


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", None) == "b":
        return bool(value)
    raise _WrongTypeError


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _WrongTypeError
    try:
        return operator.index(value)
    except TypeError:
        raise _WrongTypeError from None


def _as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _WrongTypeError
    return float(value)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return str(value.value) if isinstance(value, Enum) else value
    if isinstance(value, os.PathLike):
        return str(_as_path(value))
    raise _WrongTypeError


def _as_path(value: Any) -> str | Path:
    if isinstance(value, str | Path):
        return value
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return Path(os.fspath(value))
    raise _WrongTypeError


def _as_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _WrongTypeError
    if type(value).__name__ == "DatasetDict":
        raise PerdureError(
            f"the rows are those of {', '.join(map(str, value))}; give one of these splits"
        )
    return plain(dict(value))


READERS: dict[Any, Callable[[Any], Any]] = {
    bool: _as_bool,
    int: _as_int,
    float: _as_float,
    str: _as_text,
    Path: _as_path,
    dict: _as_mapping,
    Mapping: _as_mapping,
}


def _check_table(value: Any, where: str) -> None:
    """Check that rows are no table of columns, which is read as the columns' names.

    Raises:
        PerdureError: they are.
    """
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        raise PerdureError(f"{where}: give the rows of a table as table.to_dict('records')")


def _in_words(kind: Any) -> str:
    origin = _origin(kind)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    return IN_WORDS.get(origin) or f"a {getattr(kind, '__name__', kind)}"


def plain(value: Any) -> Any:
    """Return a setting as YAML has it: lists, mappings, text and numbers of Python, all copied."""
    if isinstance(value, Enum) and isinstance(value, str):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(part) for part in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return cast(Any, value).item()
    return value


def leaves_no_trace(verb: Verb) -> Verb:
    """Restore the global random generators and torch's number of threads when a verb has ended.

    Verbs that several threads call wait for each other, because they share these.
    """

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _one_at_a_time, _restored():
            return verb(*args, **kwargs)

    return cast(Verb, call)


@contextmanager
def _restored() -> Iterator[None]:
    state = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.random.get_rng_state() if torch else None
    on_devices = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_initialized() else None
    threads = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        random.setstate(state)
        # A library that the verb has imported is as in a new process.
        if numpy := sys.modules.get("numpy"):
            numpy.random.set_state(numpy_state) if numpy_state else numpy.random.seed()
        if torch := sys.modules.get("torch"):
            if torch_state is None:
                torch.manual_seed(FRESH_TORCH)
            else:
                torch.random.set_rng_state(torch_state)
            if on_devices is not None:
                torch.cuda.set_rng_state_all(on_devices)
            if threads is not None:
                torch.set_num_threads(threads)
