"""Reading the records of a file one by one, as they are stored.

    .jsonl     one object per line
    .json      an array of objects, or one object per line
    .parquet   a table
    .csv .tsv  a table with a header line, its cells separated by commas or tabs

All but Parquet may be gzipped, with `.gz` after the suffix.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, nearest


PLAIN = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*PLAIN, *(f"{suffix}.gz" for suffix in PLAIN), ".parquet")
# An object with one of these keys is itself a row, even if it also holds arrays of objects.
ROW = {"messages", "conversations", "conversation", "dialogue", "dialog", "prompt", "completion"}
ROW |= {"text", "instruction", "chosen"}
LONGEST_CELL = 2**31 - 1  # characters; some texts are longer than the csv module's default, 2**17


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each record of a file with its number, counted from 1.

    The number is that of a line of JSON, an element of an array, or a record of a table.

    Raises:
        PerdureError: the file is missing, incomplete, or of a format that is not supported.
    """
    if not path.is_file():
        raise PerdureError(_missing(path))
    suffix = suffix_of(path.name)
    if suffix is None:
        raise PerdureError(
            f"{path}: the formats of rows are {', '.join((*PLAIN, '.parquet'))}, all but the last "
            "also gzipped (.gz); convert the file to one of these"
        )
    kind = suffix.removesuffix(".gz")
    read = {".parquet": _read_parquet, ".json": _read_json, ".jsonl": _read_lines}.get(kind)
    try:
        yield from (read(path) if read else _read_table(path, kind))
    except UnicodeDecodeError as error:
        raise PerdureError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise PerdureError(
            f"{path}: not a complete gzip file ({error}); compress it again"
        ) from error


def suffix_of(name: str) -> str | None:
    """Return the suffix that tells a file's format, or None if the format is not supported."""
    return next((s for s in SUFFIXES if name.lower().endswith(s)), None)


def without_nulls(value: Any) -> Any:
    """Remove from a table's record the keys that are there only because of the column's type.

    In a column of lists of messages, each message has the keys of all the messages, and those that
    it does not set itself are null.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _open(path: Path, newline: str | None = None) -> Any:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8-sig", newline=newline)


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as lines:
        yield from _lines(_without_array(lines, path), path)


def _without_array(lines: Iterable[str], path: Path) -> Iterator[str]:
    """Yield the lines unchanged; raise PerdureError if together they are one JSON array."""
    is_first = True
    for line in lines:
        if is_first and re.match(r"\s*\[\s*([\]{]|$)", line):
            name = re.sub(r"\.jsonl(\.gz)?$", r".json\1", path.name, flags=re.I)
            raise PerdureError(
                f"{path}: the file holds a JSON array, but each line of a .jsonl file is one row; "
                f"name it {name}"
            )
        is_first = is_first and not line.strip()
        yield line


def _lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _loads(line, f"{path}, row {number}", "each line must hold one object")


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Read an array of objects, or one object per line, as many `.json` files are written."""
    with _open(path) as file:
        text = file.read()
    if text.lstrip().startswith("["):
        yield from enumerate(_loads(text, str(path), "a .json file must hold one array"), 1)
        return
    try:
        whole = json.loads(text)
    except ValueError:
        yield from _lines(io.StringIO(text), path)
        return
    if not isinstance(whole, dict):
        raise PerdureError(f"{path}: expected an array of rows, got {type(whole).__name__}")
    arrays = [
        key
        for key, rows in whole.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]
    if arrays and not ROW & set(whole):
        key = "data" if "data" in arrays else max(arrays, key=lambda key: len(whole[key]))
        raise PerdureError(
            f"{path}: the file holds one object with an array under {key!r}; write only the "
            "array, or each of its rows on a line of a .jsonl file"
        )
    yield 1, whole


class _DuplicateKeyError(ValueError):
    """An object has the same key twice, so that one of the values would be lost."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _DuplicateKeyError(f"the key {key!r} occurs twice in one object; keep one of them")
    return values


def _loads(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise PerdureError(
            f"{where}: not JSON ({error.msg} at {at}column {error.colno}); {expected}"
        ) from error
    except _DuplicateKeyError as error:
        raise PerdureError(f"{where}: {error}") from None
    except RecursionError:
        raise PerdureError(f"{where}: nested too deeply to be a row") from None


def _read_table(path: Path, kind: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    name, delimiter = ("CSV", ",") if kind == ".csv" else ("TSV", "\t")
    with _open(path, newline="") as lines:
        try:
            table = csv.DictReader(lines, delimiter=delimiter, strict=True)
            _check_header(table.fieldnames or (), path)
            for number, record in enumerate(table, 1):
                if None in record:
                    separators = "commas" if delimiter == "," else "tabs"
                    raise PerdureError(
                        f"{path}, row {number}: more cells than columns; put cells that contain "
                        f"{separators} in quotes"
                    )
                yield number, {key: value or None for key, value in record.items()}
        except csv.Error as error:
            raise PerdureError(
                f"{path}: not {name} ({error}); save it with a header line, and put cells that "
                "hold quotes in quotes"
            ) from error


def _check_header(columns: Any, path: Path) -> None:
    for column, times in Counter(columns).items():
        if times > 1:
            raise PerdureError(f"{path}: column {column!r} occurs twice; rename one of them")
    if len(columns) == 1:
        other = next((mark for mark in ";\t|," if mark in columns[0]), None)
        if other:
            raise PerdureError(
                f"{path}: its only column is {columns[0]!r}, so its cells are separated by "
                f"{other!r}; save it as .csv with commas or as .tsv with tabs"
            )


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PerdureError(
            f"{path}: not a complete Parquet file ({reason}); write it again"
        ) from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield number, without_nulls(record)


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; give one of the files in it"
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent} either; check the path"
    names = [entry.name for entry in path.parent.iterdir() if suffix_of(entry.name)]
    hint = nearest(path.name, names) if names else "its folder has no file of rows"
    return f"no file {path}: {hint}"
