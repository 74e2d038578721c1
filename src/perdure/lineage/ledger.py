"""The append-only ledger: JSON lines, each of which holds the SHA-256 of the line before it.

No line holds the hash of the newest one, so `newest.json` beside the ledger has that line once
more, with its hash. First the line is written into the ledger, without its newline, so that it has
its place on the disk; readers pass over it. Then `newest.json` is replaced as a whole, and this is
the commit. The newline comes last: if the process stops before it, or the disk is full, readers
take the line from `newest.json`, and `finish_append` completes it.
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.disk import open_file
from perdure.errors import PerdureError
from perdure.lineage.files import dump, write_text
from perdure.lineage.names import NEWEST
from perdure.parsing import LARGEST_JSON, UnreadableError, parse_json, read_limited
from perdure.writing import sync, writing


TRIES = 100  # how often two files are read until no other process writes them meanwhile


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ledger and check their chain of hashes.

    A last line without a newline was never committed, because the process stopped while writing it,
    and is left out, unless it is the line of `newest.json`.

    Raises:
        PerdureError: a line is not JSON, its `previous` is not the hash of the line before it, or
            the newest line is not that of `newest.json`.
    """
    return parsed(path, _committed(path))


def parsed(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    """Parse the lines of the ledger `path` and check their chain of hashes."""
    entries, previous = [], ""
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line)
        except UnreadableError as error:
            raise PerdureError(
                f"{path}: line {number} is not JSON ({error}); restore it from a copy"
            ) from error
        if not isinstance(entry, dict) or entry.get("previous") != previous:
            raise PerdureError(
                f"{path}: line {number} does not follow the line before it; a line was changed or "
                "removed, restore the ledger from a copy"
            )
        entries.append(entry)
        previous = line_hash(line)
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """Append a line and wait until it is on the disk, which commits a stage.

    Raises:
        PerdureError: it cannot be written. The ledger then has no further line.
    """
    lines = _committed(path)
    previous = line_hash(lines[-1]) if lines else ""
    line = json.dumps({**entry, "previous": previous}, sort_keys=True, ensure_ascii=False)
    write_lines(path, lines, begun=line.encode())
    try:
        write_newest(path, line.encode())
    except PerdureError:
        if newest_line(path) != line.encode():
            raise
        # It is there, and only its folder could not be synced.
    finish_append(path)


def finish_append(path: Path) -> None:
    """Complete the newest line in the ledger, which may lack its newline, from `newest.json`.

    If that cannot be written, nothing is lost, as the line is committed without it.
    """
    newest = newest_line(path)
    if newest is not None and newest not in whole_lines(path)[0]:
        with suppress(PerdureError):
            write_lines(path, _committed(path))


def write_newest(path: Path, line: bytes) -> None:
    """Write the newest line of the ledger `path` into `newest.json`, with its hash."""
    write_text(path.with_name(NEWEST), _newest_content(line).decode())


def write_lines(path: Path, lines: list[bytes], begun: bytes = b"") -> None:
    """Write what a ledger lacks of these lines, and remove what is after them or is not theirs.

    The line `begun` comes after them without a newline.
    """
    content = b"".join(line + b"\n" for line in lines) + begun
    with writing(path), open_file(path, "r+b" if path.exists() else "x+b") as file:
        present, start = file.read(), 0
        for line in lines:
            if present[start : start + len(line) + 1] != line + b"\n":
                break
            start += len(line) + 1
        if present[start:] != content[start : len(present)]:
            file.truncate(start)
            present = present[:start]
        file.seek(len(present))
        file.write(content[len(present) :])
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def line_hash(line: bytes) -> str:
    """Return the hash by which the next line, or `newest.json`, names a line."""
    return hashlib.sha256(line).hexdigest()


def newest_line(path: Path) -> bytes | None:
    """Return the line in a ledger's `newest.json`, None if the file is absent or damaged."""
    try:
        with open_file(path.with_name(NEWEST), "rb") as file:
            content = read_limited(file, LARGEST_JSON, str(path.with_name(NEWEST)))
        line = parse_json(content)["line"].encode()
        content = with_line_feeds(content)  # a line is guarded even if git has changed its end
        is_whole = content == _newest_content(line) and isinstance(parse_json(line), dict)
        return line if is_whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def whole_lines(path: Path) -> tuple[list[bytes], bytes]:
    """Return the lines of a ledger, and what is after its last newline."""
    if not path.exists():
        return [], b""
    with open_file(path, "rb") as file:
        *lines, rest = read_limited(file, LARGEST_JSON, str(path)).split(b"\n")
    return lines, rest


def with_line_feeds(content: bytes) -> bytes:
    r"""Return a text with the ends of lines that Perdure writes: LF in place of CR LF."""
    return re.sub(rb"\r+\n", b"\n", content)


def without_added_ends(lines: list[bytes]) -> list[bytes]:
    """Return the lines of a ledger without a CR at their end, and without blank lines.

    Perdure writes neither. Git with core.autocrlf writes the one, an editor the other.
    """
    return [line.rstrip(b"\r") for line in lines if line.strip()]


def differences_from_newest(path: Path) -> list[str]:
    """Return a line for each way in which a ledger and its `newest.json` differ."""
    (lines, rest), newest, file = whole_lines(path), newest_line(path), path.with_name(NEWEST)
    problems = []
    if newest is not None and b"\r" in file.read_bytes():
        problems.append(f"{file}: {line_ends_changed(path.parent)}")
    if newest is None:
        state = "damaged" if file.exists() else "missing (as in lineages of earlier releases)"
        problems.append(
            f"{file}: {state}, so damage to the ledger's newest line would not be noticed; the "
            "next line of the ledger writes it"
        )
    elif newest not in lines:
        problems.append(
            f"{path}: its newest line is missing or incomplete, and is read from {file}; the next "
            "line of the ledger adds it"
        )
    elif newest != lines[-1]:
        problems.append(
            f"{file}: is of line {lines.index(newest) + 1}, not of the newest line of the ledger; "
            "the next line of the ledger writes it"
        )
    if rest and (newest is None or newest in lines):
        problems.append(
            f"{path}: has an incomplete line at its end, which was never committed; the next line "
            "takes its place"
        )
    return problems


def line_ends_changed(folder: Path) -> str:
    """Return what an error line says of a file whose line ends are not those of Perdure."""
    return (
        "the ends of its lines were changed to CRLF, for example by git's core.autocrlf; "
        f"`perdure repair {folder}` puts them back"
    )


def newest_is_of_another(path: Path, lines: int) -> str:
    """Return the error line for a ledger of so many lines that `newest.json` does not continue."""
    newest = path.with_name(NEWEST)
    return (
        f"{path}: lines are missing after line {lines}, or {newest} does not belong to this "
        "ledger; restore both from the same copy, or if the ledger is whole, delete "
        f"{NEWEST}, and `perdure repair {path.parent}` writes it again"
    )


def _newest_content(line: bytes) -> bytes:
    return dump({"line": line.decode(), "sha256": line_hash(line)}).encode()


def _check_line_ends(path: Path, lines: list[bytes]) -> None:
    if any(line.endswith(b"\r") for line in lines):
        raise PerdureError(f"{path}: {line_ends_changed(path.parent)}")
    if any(not line.strip() for line in lines):
        raise PerdureError(
            f"{path}: has blank lines, which Perdure does not write; "
            f"`perdure repair {path.parent}` removes them"
        )


def _committed(path: Path) -> list[bytes]:
    """Return the lines of a ledger that were committed, the newest as `newest.json` has it.

    Raises:
        PerdureError: `newest.json` has another newest line, or the ends of lines were changed.
    """
    newest, lines = newest_line(path), whole_lines(path)[0]
    _check_line_ends(path, lines)
    for _ in range(TRIES):
        if newest is None or newest in lines[-1:]:
            return lines
        # Another process may have appended a line between the two readings.
        last, newest, lines = newest, newest_line(path), whole_lines(path)[0]
        if newest == last == newest_line(path):
            break
    if newest is None or newest in lines:  # an earlier release, which has no newest.json, appended
        return lines
    previous = parse_json(newest).get("previous")
    if previous == (line_hash(lines[-1]) if lines else ""):
        return [*lines, newest]
    number = len(lines)
    if lines and previous == (line_hash(lines[-2]) if lines[1:] else ""):
        raise PerdureError(
            f"{path}: line {number}, the newest, was changed: {path.with_name(NEWEST)} has another "
            f"one; `perdure repair {path.parent}` restores it"
        )
    if not lines:
        raise PerdureError(f"{path}: missing or empty; restore it from a copy")
    raise PerdureError(newest_is_of_another(path, number))
