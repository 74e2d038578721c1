"""Reading the records of a file one by one, as they are stored.

    .jsonl     one object per line
    .json      an array of objects, or one object per line
    .parquet   a table
    .csv .tsv  a table with a header line, its cells separated by commas or tabs

All but Parquet may be gzipped, with `.gz` after the suffix.

Records are read one by one. Only a JSON array is read as a whole. A small file can hold very much,
as a compressed one or as one that is not what it seems, so there are limits:

    LONGEST_RECORD   characters of a record
    LARGEST_ARRAY    bytes of a JSON array
    MOST_UNPACKED    bytes of the records in a compressed file, or UNPACKED_RATIO times its size
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from perdure.data.parquet_sizes import unpacked_size
from perdure.errors import PerdureError, nearest
from perdure.parsing import (
    MIB,
    check_nesting,
    in_pieces,
    why_unreadable,
    without_duplicates,
    without_nulls,
)


PLAIN = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*PLAIN, *(f"{suffix}.gz" for suffix in PLAIN), ".parquet")
# An object with one of these keys is itself a row, even if it also holds arrays of objects.
ROW = {"messages", "conversations", "conversation", "dialogue", "dialog", "prompt", "completion"}
ROW |= {"text", "instruction", "chosen"}
LONGEST_RECORD = 16 * MIB
LARGEST_ARRAY = 256 * MIB
MOST_UNPACKED, UNPACKED_RATIO = 1024 * MIB, 200
BATCH = 1000  # records of a Parquet file that are in memory at once
RECORD_COST = 256  # bytes that a record has in memory beside its texts


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


@contextmanager
def _open(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
        yield cast(IO[str], file)


class _Budget:
    """What the records of a compressed file may still have in memory, in bytes."""

    def __init__(self, path: Path):
        self.path, self.is_compressed = path, path.name.lower().endswith((".gz", ".parquet"))
        self.left = max(MOST_UNPACKED, UNPACKED_RATIO * path.stat().st_size)

    def spend(self, size: int, records: int = 1) -> None:
        """Count records with `size` bytes of text.

        Raises:
            PerdureError: there are more than the limit allows.
        """
        self.left -= size + records * RECORD_COST
        if self.left < 0 and self.is_compressed:
            raise PerdureError(
                f"{self.path}: unpacks to more than {MOST_UNPACKED // MIB} MiB and more than "
                f"{UNPACKED_RATIO} times its size, which is the limit of a compressed file; if the "
                "rows are right, unpack it, or write them as .jsonl"
            )


class _Lines:
    """Reads the lines of a file, and limits the length of a record, which may have several lines.

    `begin_record` says that what follows is of another record.
    """

    def __init__(self, file: IO[str], path: Path):
        self.file, self.path, self.budget = file, path, _Budget(path)
        self.number, self.length = 1, 0

    def begin_record(self) -> None:
        self.number, self.length = self.number + 1, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(LONGEST_RECORD + 1):
            self.length += len(line)
            if self.length > LONGEST_RECORD:
                raise PerdureError(_too_long(self.path, self.number))
            self.budget.spend(len(line))
            yield line


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        yield from _lines(_without_array(_each_a_record(_Lines(file, path)), path), path)


def _each_a_record(lines: _Lines) -> Iterator[str]:
    for line in lines:
        lines.begin_record()
        yield line


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
        text = "".join(in_pieces(file, LARGEST_ARRAY + 1))
    _Budget(path).spend(len(text))
    if len(text) > LARGEST_ARRAY:
        raise PerdureError(
            f"{path}: has more than {LARGEST_ARRAY // MIB} MiB, the limit of a .json file, which "
            "is read as a whole; write each row on a line of a .jsonl file"
        )
    if text.lstrip().startswith("["):
        yield from enumerate(_loads(text, str(path), "a .json file must hold one array"), 1)
        return
    try:
        whole = json.loads(text, object_pairs_hook=without_duplicates)
        check_nesting(text, whole)
    except (ValueError, RecursionError):  # several objects, or an error that has a line there
        yield from _lines(_each_a_record(_Lines(io.StringIO(text), path)), path)
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


def _loads(text: str, where: str, expected: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=without_duplicates)
        check_nesting(text, value)
        return value
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise PerdureError(
            f"{where}: not JSON ({error.msg} at {at}column {error.colno}); {expected}"
        ) from error
    except RecursionError:
        raise PerdureError(f"{where}: nested too deeply to be a row") from None
    except ValueError as error:  # a number of too many digits, or a key that occurs twice
        raise PerdureError(f"{where}: {why_unreadable(error)}") from None


def _read_table(path: Path, kind: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_RECORD)  # the module's default, 2**17, is too small for texts
    name, delimiter = ("CSV", ",") if kind == ".csv" else ("TSV", "\t")
    with _open(path, newline="") as file:
        lines = _Lines(file, path)
        try:
            table = csv.DictReader(iter(lines), delimiter=delimiter, strict=True)
            _check_header(table.fieldnames or (), path)
            for number, record in enumerate(table, 1):
                lines.begin_record()
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

    budget, number = _Budget(path), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [file.schema.column(place) for place in range(len(file.schema))]
            texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        budget.spend(unpacked_size(path), records=0)
        # A text that is repeated is in memory once, as the columns of texts stay dictionaries.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=BATCH, use_threads=False):
                columns = [_values(column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    record = dict(zip(batch.schema.names, cells, strict=True))
                    size = _size(record)
                    if size > LONGEST_RECORD:
                        raise PerdureError(_too_long(path, number))
                    budget.spend(size)
                    yield number, without_nulls(record)
    # The last are of dates that Python does not have, of texts that are not UTF-8, and of places in
    # a dictionary that it does not have.
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError, IndexError) as error:
        if isinstance(error, PerdureError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PerdureError(
            f"{path}: not a Parquet file whose rows can be read ({reason}); write it again"
        ) from error


def _values(array: Any) -> list[Any]:
    """Return the values of an Arrow array, in which equal texts of a dictionary are one object."""
    import pyarrow.types as types

    kind = array.type
    if types.is_dictionary(kind):
        texts = array.dictionary.to_pylist()
        return [None if i is None else texts[i] for i in array.indices.to_pylist()]
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        parts = zip(*(_values(part) for part in array.flatten()), strict=True)
        valid = array.is_valid().to_pylist()
        return [
            dict(zip(names, values, strict=True)) if is_valid else None
            for values, is_valid in zip(parts, valid, strict=True)
        ]
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _values(array.flatten())  # without those of null lists
        lengths, start, lists = array.value_lengths().to_pylist(), 0, []
        for length in lengths:
            lists.append(None if length is None else inner[start : start + length])
            start += length or 0
        return lists
    return array.to_pylist()


def _size(value: Any) -> int:
    """Return the number of characters of all texts in a record, and 1 for each other value."""
    if isinstance(value, str | bytes):
        return len(value) + 1
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _too_long(path: Path, number: int) -> str:
    return (
        f"{path}, row {number}: has more than {LONGEST_RECORD} characters, the limit of a row; "
        "shorten it, or check that this is a file of rows"
    )


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; give one of the files in it"
    if path.exists():
        return f"{path} is a pipe or a device; write the rows into a file, and give that"
    if not path.parent.is_dir():
        return f"no file {path}: there is no folder {path.parent} either; check the path"
    names = [entry.name for entry in path.parent.iterdir() if suffix_of(entry.name)]
    hint = nearest(path.name, names) if names else "its folder has no file of rows"
    return f"no file {path}: {hint}"
