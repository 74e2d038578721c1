"""Mending the files of a lineage from what is there: ledger, settings, times, and single bits."""

import hashlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.lineage.ledger import (
    differences_from_newest,
    line_hash,
    newest_is_of_another,
    newest_line,
    parsed,
    whole_lines,
    with_line_feeds,
    without_added_ends,
    write_lines,
    write_newest,
)
from perdure.lineage.lineage import Lineage, write_settings
from perdure.lineage.names import FILES, NEWEST, TIMINGS
from perdure.lineage.timings import put_aside, read_timings
from perdure.models.hashing import file_hash
from perdure.parsing import LARGEST_JSON, parse_json
from perdure.writing import write_file


LARGEST = 32 * 1024  # of a content in which a flipped bit is looked for: seconds, in bytes


def mend_ledger(path: Path) -> list[str]:
    """Restore the lines of the ledger `path` and its `newest.json`; return what was done.

    The newest line is taken from `newest.json`, or the reverse. Each line before it has a hash in
    the line after it, with which one flipped bit can be found. Blank lines, and a CR at the end of
    a line, are removed.

    Raises:
        PerdureError: a line cannot be restored.
    """
    lines = without_added_ends(whole_lines(path)[0])
    newest, done = newest_line(path), []
    if newest is not None and newest not in lines:
        # It follows the last line if the process stopped before it was added; else it replaces it.
        previous = parse_json(newest).get("previous")
        follows = previous == (line_hash(lines[-1]) if lines else "")
        replaces = lines and previous == (line_hash(lines[-2]) if lines[1:] else "")
        if lines and not follows and not replaces and _is_chain(path, lines):
            raise PerdureError(newest_is_of_another(path, len(lines)))
        lines = [*lines, newest] if follows else [*lines[:-1], newest]
    expected = line_hash(lines[-1]) if lines else ""
    for number in range(len(lines), 0, -1):
        line = with_bit_restored(lines[number - 1], expected)
        if line is None:
            raise PerdureError(
                f"{path}: line {number} is not as it was written and cannot be restored from what "
                "is here; restore the ledger from a copy"
            )
        lines[number - 1] = line
        try:
            expected = parse_json(line)["previous"]
        except (ValueError, KeyError, TypeError) as error:
            raise PerdureError(
                f"{path}: line {number} is not JSON; restore the ledger from a copy"
            ) from error
    parsed(path, lines)
    problems = differences_from_newest(path)
    if lines and (problems or whole_lines(path)[0] != lines):
        write_newest(path, lines[-1])
        write_lines(path, lines)
        done.append(f"{path} and {NEWEST}: restored")
    return done


def _is_chain(path: Path, lines: list[bytes]) -> bool:
    """Return whether each line is JSON and has the hash of the line before it."""
    try:
        parsed(path, lines)
    except PerdureError:
        return False
    return True


def with_bit_restored(content: bytes, sha256: str) -> bytes | None:
    """Return a content that has a hash, if it has it or would have it with one bit flipped."""
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    if len(content) > LARGEST:
        return None
    before = hashlib.sha256()
    for place, byte in enumerate(content):
        for bit in range(8):
            attempt = before.copy()
            attempt.update(bytes([byte ^ 1 << bit]) + content[place + 1 :])
            if attempt.hexdigest() == sha256:
                return content[:place] + bytes([byte ^ 1 << bit]) + content[place + 1 :]
        before.update(content[place : place + 1])
    return None


def mend_small_files(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Delete temporary files, and restore `lineage.yaml` and `timings.json`; return what was done.

    What is replaced is put aside under another name.

    Args:
        path: the folder of the lineage.
        entries: the checked lines of its ledger.
    """
    done = []
    for name in FILES:
        unfinished = path / f".{name}.new"
        if unfinished.is_dir() and not unfinished.is_symlink():
            raise PerdureError(
                f"{unfinished}: is a folder, where a temporary file belongs; move it"
            )
        if unfinished.exists() or unfinished.is_symlink():
            unfinished.unlink()
            done.append(f"{unfinished}: deleted, a process that was stopped had left it")
    if read_timings(path / TIMINGS) is None:
        aside = put_aside(path / TIMINGS)
        done.append(f"{path / TIMINGS}: damaged and put aside as {aside.name}; no stage needs it")
    try:
        Lineage(path)
    except PerdureError:
        settings = path / "lineage.yaml"
        stored = [entry["settings"] for entry in entries if "settings" in entry]
        pins = [entry["base"] for entry in entries if "base" in entry]
        if not stored or not pins:
            raise  # a lineage of the first releases, whose settings are nowhere else
        aside = put_aside(settings).name if settings.exists() else None
        write_settings(path, stored[-1], pins[-1])
        put_away = f"; the file that was there is {aside} now" if aside else ""
        done.append(f"{settings}: written again from the ledger{put_away}")
    return done


def replace_links(path: Path, entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Put the content of a link's target in place of each link in a stage, if the hash is right."""
    done = []
    for entry in entries:
        for name, sha256 in entry.get("files", {}).items():
            file = path / entry["folder"] / name
            folders = [folder for folder in file.parents if folder.is_relative_to(path)]
            if not file.is_symlink() or any(folder.is_symlink() for folder in folders[:-1]):
                continue  # a file behind a linked folder is not in the lineage
            if file.exists() and stat.S_ISREG(file.stat().st_mode) and file_hash(file) == sha256:
                with file.open("rb") as content:
                    write_file(file, content)  # the link is there until the copy is complete
                done.append(f"{file}: its content in place of the link to it")
    return done


def restore_content(file: Path, sha256: str) -> str | None:
    """Restore the line ends of a file, or a flipped bit of a small one; return what was restored.

    None means that the file is not as it was written, and cannot be restored from itself.
    """
    if not file.is_file() or file.stat().st_size > LARGEST_JSON:
        return None
    content = file.read_bytes()
    with_ends = with_line_feeds(content)
    if hashlib.sha256(with_ends).hexdigest() == sha256:
        write_file(file, with_ends)
        return "the ends of its lines"
    restored = with_bit_restored(content, sha256)
    if restored is None:
        return None
    write_file(file, restored)
    return "a flipped bit"


def has_only_other_line_ends(file: Path, sha256: str) -> bool:
    """Return whether a file would have a hash if its lines ended with LF in place of CRLF."""
    if file.stat().st_size > LARGEST_JSON:
        return False
    return hashlib.sha256(with_line_feeds(file.read_bytes())).hexdigest() == sha256
