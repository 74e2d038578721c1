"""Rows: reading them from files, their reference answers, and their hash.

A row has one of three formats, as in TRL:

    {"prompt": ..., "completion": ...}     both are text, or both are lists of messages
    {"messages": [...]}                    every turn of the assistant is learned
    {"text": ...}                          the whole text is learned

Beside messages a row may have `tools` and `chat_template_kwargs`, as in TRL. Rows of the first two
formats may have `references`, a list of further correct answers: the best match counts when a model
is scored. `perdure.data.forms` converts other formats and columns to these. A row is always plain
JSON, so that its hash identifies its content.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.data.files import SUFFIXES, read_records
from perdure.data.forms import Notes, Row, as_row
from perdure.data.messages import checked_text
from perdure.errors import PerdureError


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
    "write_rows",
]


@dataclass
class Read:
    """The rows of a file, their numbers in the file, and notes about how it was read."""

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, from which `read_rows` returns the same rows.

    The keys within tools and their calls stay in order, because a chat template writes them so.
    """
    lines = [json.dumps(dict(sorted(row.items())), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: str | Path, to_row: Callable[[Any, str], Row] | None = None) -> list[Row]:
    """Read all rows of a file, in order.

    Args:
        path: the file.
        to_row: converts a record to a row, given the record and its place for error lines. By
            default `as_row`.

    Raises:
        PerdureError: the file is missing, empty, or of a format that is not supported, or a record
            is not a row. The error line names the file and the row, counted from 1.
    """
    return read(path, to_row).rows


def read(path: str | Path, to_row: Callable[[Any, str], Row] | None = None) -> Read:
    """Read rows as `read_rows` does, with their numbers and notes on what `as_row` left out."""
    path, result, notes = Path(path), Read(), Notes()
    for number, raw in read_records(path):
        where = f"{path}, row {number}"
        result.rows.append(to_row(raw, where) if to_row else as_row(raw, where, notes))
        result.numbers.append(number)
    if not result.rows:
        raise PerdureError(f"{path}: the file holds no rows; give a file with at least one")
    result.notes = notes.lines(str(path))
    return result


def hash_rows(rows: Iterable[Row]) -> str:
    """Return the SHA-256 of the rows as canonical JSON lines, in hex.

    Rows with the same content have the same hash.
    """
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def answer(row: Row) -> str:
    """Return the reference answer as text: the completion, or the assistant's last message.

    The answer is empty if the assistant only calls a tool.
    """
    if "text" in row:
        return row["text"]
    completion = row["messages"] if "messages" in row else row["completion"]
    return completion if isinstance(completion, str) else completion[-1].get("content", "")


def references(row: Row) -> list[str]:
    """Return all correct answers: the one that is learned, then the row's `references`."""
    return [answer(row), *row.get("references", ())]


def answered(row: Row, text: str) -> Row:
    """Return the row with `text` as its answer and without references.

    The reasoning and the tool calls of the old answer are removed too, as they would reveal it. A
    row of text has no answer and cannot be passed.
    """
    row = {key: value for key, value in row.items() if key != "references"}
    key = "messages" if "messages" in row else "completion"
    if isinstance(row[key], str):
        return row | {key: text}
    return row | {key: [*row[key][:-1], {"role": "assistant", "content": text}]}


def in_place_of(reference: str, text: str) -> str:
    """Return `text` with the white space around `reference`, which the model was trained on."""
    before, _, after = reference.partition(reference.strip())
    return before + text.strip() + after
