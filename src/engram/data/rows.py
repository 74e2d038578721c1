"""Rows, checked one by one, from files and back to text.

A row is one of three things, as in TRL:

    {"prompt": ..., "completion": ...}     both text, or both lists of messages
    {"messages": [...]}                    every turn of the assistant's is learned
    {"text": ...}                          all of it is learned

`tools` and `chat_template_kwargs` may stand beside messages, as in TRL too, and `references` beside
the first two: a list of further right answers, of which the best one counts when a model is scored.
What other columns and other forms become, `engram.data.forms` knows. A row is always JSON, so that
its hash means its content.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engram.data.files import SUFFIXES, read_records
from engram.data.forms import Notes, Row, as_row
from engram.data.messages import checked_text
from engram.errors import EngramError


__all__ = [
    "SUFFIXES",
    "Read",
    "Row",
    "answer",
    "answered",
    "as_row",
    "checked_text",
    "hash_rows",
    "in_place_of",
    "read",
    "read_rows",
    "references",
]


@dataclass
class Read:
    """The rows of a file with their numbers in it, and what is to be said of how it was read."""

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def read_rows(path: str | Path, to_row: Callable[[Any, str], Row] | None = None) -> list[Row]:
    """All rows of a file, in order; `to_row` makes a record a row, by default `as_row`.

    Raises:
        EngramError: the file is missing, empty, of another format, or one of its rows is not a row;
            the line names file and row. Rows count from 1: lines of JSON, elements of an array,
            records of a table.
    """
    return read(path, to_row).rows


def read(path: str | Path, to_row: Callable[[Any, str], Row] | None = None) -> Read:
    """As `read_rows`, with the rows' numbers and what `as_row` has left out."""
    path, found, notes = Path(path), Read(), Notes()
    for number, raw in read_records(path):
        where = f"{path}, row {number}"
        found.rows.append(to_row(raw, where) if to_row else as_row(raw, where, notes))
        found.numbers.append(number)
    if not found.rows:
        raise EngramError(f"{path}: the file holds no rows; give a file with at least one")
    found.notes = notes.lines(str(path))
    return found


def hash_rows(rows: Iterable[Row]) -> str:
    """SHA-256 (hex) of the rows as canonical JSON lines: the same content gives the same hash."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def answer(row: Row) -> str:
    """The reference answer as plain text: the completion, or what the assistant said last.

    Empty where the assistant does nothing but call a tool.
    """
    if "text" in row:
        return row["text"]
    said = row["messages"] if "messages" in row else row["completion"]
    return said if isinstance(said, str) else said[-1].get("content", "")


def references(row: Row) -> list[str]:
    """All right answers: the one that is learned, and the row's further ones."""
    return [answer(row), *row.get("references", ())]


def answered(row: Row, text: str) -> Row:
    """The row with another answer, and no further ones; a row of text has none.

    Thoughts and calls go with the old answer: they would give it away.
    """
    row = {key: value for key, value in row.items() if key != "references"}
    key = "messages" if "messages" in row else "completion"
    if isinstance(row[key], str):
        return row | {key: text}
    return row | {key: [*row[key][:-1], {"role": "assistant", "content": text}]}


def in_place_of(reference: str, text: str) -> str:
    """The text between the white space of the reference, which training has seen as well."""
    before, _, after = reference.partition(reference.strip())
    return before + text.strip() + after
