"""Reading JSON and YAML files that may be damaged or a stranger's.

Python's parsers raise errors of many types on such files, wait for ever on a named pipe, and make
huge values of small texts. Here everything that cannot be used is an `UnreadableError`, and sizes
and depths have limits.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from perdure.errors import PerdureError


MIB = 1 << 20
PIECE = 4 * MIB
LARGEST_JSON = 256 * MIB  # a JSON file of a lineage, a base or an adapter, and a ledger, in bytes
LARGEST_YAML = MIB  # in bytes
MOST_VALUES = 100_000  # in a YAML file, an alias counted as often as it is used
MOST_NESTED = 100  # levels of lists and mappings
# An escaped half of a surrogate pair, in JSON or YAML. A whole pair in JSON has two of them.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|\\U0000[dD][89a-fA-F]")


class UnreadableError(ValueError):
    """A text is not JSON or YAML, or has more than the limits allow. The error says why."""


def read_whole(path: Path, largest: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        PerdureError: there is a special file at the path, or the file is too large.
        OSError: the file cannot be opened.
    """
    # O_NONBLOCK only matters for a named pipe, which would wait for another process.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PerdureError(f"{path}: is not a file; give the path of a file")
        return read_limited(file, largest, str(path))


def read_limited(file: Any, largest: int, where: str) -> bytes:
    """Return the content of an open file of at most `largest` bytes.

    Raises:
        PerdureError: it has more; the line begins with `where`.
    """
    content = b"".join(in_pieces(file, largest + 1))
    if len(content) > largest:
        raise PerdureError(
            f"{where}: has more than {largest // MIB} MiB, the limit of such a file; it is damaged "
            "or another file, give the right one"
        )
    return content


def in_pieces(file: Any, most: int) -> Iterator[Any]:
    """Yield what an open file contains, up to `most` bytes, or characters of a text file.

    `file.read(most)` would reserve so much memory, however small the file is.
    """
    while most and (piece := file.read(min(most, PIECE))):
        most -= len(piece)
        yield piece


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        UnreadableError: it is not JSON, or too much.
        PerdureError: it is not a file, or too large.
        OSError: the file cannot be opened.
    """
    return parse_json(read_whole(path, LARGEST_JSON))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        UnreadableError: the text is not JSON in UTF-8, is nested too deeply, has a number that is
            not finite or is too long, the same key twice in a mapping, or half of a character.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=without_duplicates, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise UnreadableError(_TOO_DEEP) from None
    except ValueError as error:
        raise UnreadableError(why_unreadable(error)) from None
    check_nesting(text, value)
    if _SURROGATE.search(text):
        _check_texts(value)
    return value


def why_unreadable(error: Exception) -> str:
    """Return why a parser could not read a value, on one line.

    Python's own line about a number of more than `sys.get_int_max_str_digits()` digits tells
    programmers how to raise that limit, which is of no use to the writer of a file.
    """
    line = " ".join(str(error).split())
    is_about_digits = type(error) is ValueError and "set_int_max_str_digits" in line
    return "a number has too many digits; write it as text" if is_about_digits else line


def check_nesting(text: str, value: Any) -> None:
    """Check how deeply the value of a JSON text is nested.

    Raises:
        UnreadableError: it has more than `MOST_NESTED` levels.
    """
    if text.count("[") + text.count("{") <= MOST_NESTED:  # the levels are not more than these
        return
    level = [value]
    for _ in range(MOST_NESTED + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _in(outer)]
        if not level:
            return
    raise UnreadableError(_TOO_DEEP)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of a JSON object.

    Raises:
        UnreadableError: a key occurs twice, so that one of its values would be lost.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise UnreadableError(f"the key {key!r} occurs twice in one object; keep one of them")
    return values


class CheckedLoader(yaml.SafeLoader):
    """Reads YAML of plain values, without duplicate keys, and with limits for aliases and depth."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}  # how many values a node stands for, with aliases

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if self._depth > MOST_NESTED:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=event.start_mark)
        before, is_alias = self._values, isinstance(event, yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return node
        if is_alias and node not in self._sizes:
            problem = f"the alias *{event.anchor} stands inside of what it means"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._values += self._sizes[node] if is_alias else 1
        if self._values > MOST_VALUES:
            problem = f"more than {MOST_VALUES} values, counting what each alias stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if not is_alias:
            self._sizes[node] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be text or a number"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} occurs twice in one mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def parse_yaml(text: str | bytes, loader: type[CheckedLoader] = CheckedLoader) -> Any:
    """Return the value of a YAML text.

    Raises:
        UnreadableError: the text is not YAML in UTF-8, a value or a key of it cannot be read, or it
            has too many values, too many levels, or half of a character.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = yaml.load(text, loader)  # a SafeLoader
    except RecursionError:
        raise UnreadableError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UnreadableError(f"not valid YAML{line}: {problem}") from None
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text ({error.reason})") from None
    # PyYAML raises these for numbers, dates and tagged values that it cannot read.
    except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        raise UnreadableError(
            f"not valid YAML: a value cannot be read ({why_unreadable(error)})"
        ) from None
    for key in _keys(value):
        if not isinstance(key, str | int | float | bool | None):
            raise UnreadableError(f"not valid YAML: a key is a {type(key).__name__}; quote it")
    if _SURROGATE.search(text):
        _check_texts(value)
    return value


_TOO_DEEP = f"nested more than {MOST_NESTED} levels deep"


def _refuse_constant(name: str) -> None:
    raise UnreadableError(f"{name} is not JSON")


def _in(value: Any) -> Iterable[Any]:
    """Return the values in a list or a mapping, none for other values."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def _all(value: Any) -> Iterator[Any]:
    """Yield a value and all values in it."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        waiting.extend(_in(value))


def _keys(value: Any) -> Iterator[Hashable]:
    """Yield the keys of all mappings in a value."""
    for part in _all(value):
        if isinstance(part, dict):
            yield from part


def _check_texts(value: Any) -> None:
    """Raise UnreadableError if a text or a key has half of a surrogate pair."""
    texts = (part for part in _all(value) if isinstance(part, str))
    for text in (*texts, *(key for key in _keys(value) if isinstance(key, str))):
        try:
            text.encode()
        except UnicodeEncodeError:
            problem = "a text has half of a character (of a surrogate pair)"
            raise UnreadableError(problem) from None


def without_nulls(record: Mapping[Any, Any]) -> dict[str, Any]:
    """Remove the keys within a table's cells that are there only because of the column's type.

    In a column of lists of messages, each message has the keys of all the messages, and those that
    it does not set itself are null. An empty cell stays null.
    """
    return {column: _set_keys(cell) for column, cell in record.items()}


def _set_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _set_keys(inner) for key, inner in value.items() if inner is not None}
    return [_set_keys(inner) for inner in value] if isinstance(value, list) else value
