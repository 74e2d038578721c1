"""Records of a file, one by one, before anything is made of them.

    .jsonl     an object a line
    .json      an array of objects, or an object a line
    .parquet   a table
    .csv .tsv  a table with a header line, cells apart by commas or tabs

All but Parquet may be gzipped, with `.gz` behind the suffix.
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

from engram.errors import EngramError, nearest


PLAIN = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*PLAIN, *(f"{suffix}.gz" for suffix in PLAIN), ".parquet")
# An object with one of these is a row itself, whatever lists it has.
ROW = {"messages", "conversations", "conversation", "dialogue", "dialog", "prompt", "completion"}
ROW |= {"text", "instruction", "chosen"}
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit, 2**17, is less than some texts


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a file with their numbers, from 1: lines of JSON, elements of an array, or
    records of a table.

    Raises:
        EngramError: the file is missing, of another format, or not whole.
    """
    if not path.is_file():
        raise EngramError(_missing(path))
    suffix = suffix_of(path.name)
    if suffix is None:
        raise EngramError(
            f"{path}: rows come as {', '.join((*PLAIN, '.parquet'))}, all but the last also "
            "gzipped (.gz); convert the file to one of these"
        )
    kind = suffix.removesuffix(".gz")
    read = {".parquet": _read_parquet, ".json": _read_json, ".jsonl": _read_lines}.get(kind)
    try:
        yield from (read(path) if read else _read_table(path, kind))
    except UnicodeDecodeError as error:
        raise EngramError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise EngramError(f"{path}: not a whole gzip file ({error}); compress it again") from error


def suffix_of(name: str) -> str | None:
    """The suffix by which a file's format is known, None if it is none of ours."""
    return next((s for s in SUFFIXES if name.lower().endswith(s)), None)


def without_nulls(value: Any) -> Any:
    """A table's record without the keys that the columns' types alone have put there.

    Of a column of lists of messages, every message has the keys of all of them, null where it has
    none itself.
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
    """The lines themselves, unless they are those of one array."""
    is_first = True
    for line in lines:
        if is_first and re.match(r"\s*\[\s*([\]{]|$)", line):
            name = re.sub(r"\.jsonl(\.gz)?$", r".json\1", path.name, flags=re.I)
            raise EngramError(
                f"{path}: holds a JSON array, and every line of a .jsonl file is a row of its own; "
                f"name it {name}"
            )
        is_first = is_first and not line.strip()
        yield line


def _lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _loads(line, f"{path}, row {number}", "every line holds one whole object")


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """An array; or an object a line, which many files of this name hold."""
    with _open(path) as file:
        text = file.read()
    if text.lstrip().startswith("["):
        yield from enumerate(_loads(text, str(path), "a .json file holds one whole array"), 1)
        return
    try:
        whole = json.loads(text)
    except ValueError:
        yield from _lines(io.StringIO(text), path)
        return
    if not isinstance(whole, dict):
        raise EngramError(f"{path}: expected an array of rows, got {type(whole).__name__}")
    arrays = [
        key
        for key, rows in whole.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]
    if arrays and not ROW & set(whole):
        key = "data" if "data" in arrays else max(arrays, key=lambda key: len(whole[key]))
        raise EngramError(
            f"{path}: one object with an array under {key!r}; write the array alone, or "
            "each of its rows on a line of a .jsonl file"
        )
    yield 1, whole


class _TwiceError(ValueError):
    """A key stands twice in an object, and one of its values would be lost."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _TwiceError(f"the key {key!r} stands twice in one object; keep one of them")
    return made


def _loads(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise EngramError(
            f"{where}: not JSON ({error.msg} at {at}column {error.colno}); {expected}"
        ) from error
    except _TwiceError as error:
        raise EngramError(f"{where}: {error}") from None
    except RecursionError:
        raise EngramError(f"{where}: nested too deeply to be a row") from None


def _read_table(path: Path, kind: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_CELL)
    name, delimiter = ("CSV", ",") if kind == ".csv" else ("TSV", "\t")
    with _open(path, newline="") as lines:
        try:
            table = csv.DictReader(lines, delimiter=delimiter, strict=True)
            _check_header(table.fieldnames or (), path)
            for number, record in enumerate(table, 1):
                if None in record:
                    what = "commas" if delimiter == "," else "tabs"
                    raise EngramError(
                        f"{path}, row {number}: more cells than columns; quote cells with {what}"
                    )
                yield number, {key: value or None for key, value in record.items()}
        except csv.Error as error:
            raise EngramError(
                f"{path}: not {name} ({error}); save it with a header line, and with cells in "
                "quotes that hold quotes"
            ) from error


def _check_header(columns: Any, path: Path) -> None:
    for column, times in Counter(columns).items():
        if times > 1:
            raise EngramError(f"{path}: column {column!r} stands twice; rename one of them")
    if len(columns) == 1:
        other = next((mark for mark in ";\t|," if mark in columns[0]), None)
        if other:
            raise EngramError(
                f"{path}: its one column is {columns[0]!r}, so the cells are apart by {other!r}; "
                "save it as .csv with commas or as .tsv with tabs"
            )


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EngramError(f"{path}: not a whole Parquet file ({reason}); write it again") from error
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
