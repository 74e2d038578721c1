"""The ledger's chain, its half lines, its newest line, and the folder's lock."""

import json
import tracemalloc
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.lineage.files import line_count, locked, write_text
from perdure.lineage.ledger import append, differences_from_newest, read_ledger, write_newest
from perdure.lineage.mending import mend_ledger
from perdure.lineage.names import NEWEST


pytestmark = pytest.mark.own


def test_lines_come_back_in_order_and_hold_the_hash_of_the_line_before(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for stage in range(3):
        append(path, {"stage": stage})
    entries = read_ledger(path)
    assert [entry["stage"] for entry in entries] == [0, 1, 2]
    assert entries[0]["previous"] == ""
    assert len({entry["previous"] for entry in entries}) == 3


def test_a_changed_or_removed_line_is_found(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for stage in range(3):
        append(path, {"stage": stage})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace('"stage": 1', '"stage": 7') + lines[2])
    with pytest.raises(PerdureError, match="line 3 does not follow"):
        read_ledger(path)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(PerdureError, match="line 2 does not follow"):
        read_ledger(path)


def test_bytes_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"stage": 0, "previous": "\xff"}\n')
    with pytest.raises(PerdureError, match="line 1 is not JSON"):
        read_ledger(path)


def test_a_half_line_was_never_committed_and_the_next_append_takes_its_place(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, {"stage": 0})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"stage": 1, "previ')
    assert [entry["stage"] for entry in read_ledger(path)] == [0]
    append(path, {"stage": 1})
    assert path.read_bytes().startswith(whole)
    assert [entry["stage"] for entry in read_ledger(path)] == [0, 1]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.fixture
def ledger(tmp_path) -> Path:
    """A ledger of three lines."""
    path = tmp_path / "ledger.jsonl"
    for stage in range(3):
        append(path, {"stage": stage})
    return path


def stages(ledger: Path) -> list[int]:
    return [entry["stage"] for entry in read_ledger(ledger)]


def test_a_flipped_bit_of_a_ledger_is_found(ledger):
    content = ledger.read_bytes()
    for bit in [*range(0, 8 * len(content), 13), 8 * len(content) - 5]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        ledger.write_bytes(changed)
        if bit // 8 == len(content) - 1:  # the last newline
            assert stages(ledger) == [0, 1, 2]
            assert differences_from_newest(ledger)
        else:
            with pytest.raises(PerdureError, match=r"ledger\.jsonl: "):
                read_ledger(ledger)


def test_a_changed_newest_line_is_found(ledger):
    ledger.write_text(ledger.read_text().replace('"stage": 2', '"stage": 7'))
    with pytest.raises(PerdureError, match=r"line 3, the newest, was changed: .*newest\.json"):
        read_ledger(ledger)


@pytest.mark.parametrize("lost", [1, 7, "line"])
def test_a_newest_line_that_is_not_whole_is_read_from_newest_json(ledger, lost):
    content = ledger.read_bytes()
    size = content.rindex(b"\n", 0, -1) + 1 if lost == "line" else len(content) - lost
    ledger.write_bytes(content[:size])
    assert stages(ledger) == [0, 1, 2]
    assert "its newest line is missing or incomplete" in differences_from_newest(ledger)[0]
    append(ledger, {"stage": 3})
    assert ledger.read_bytes().startswith(content)
    assert stages(ledger) == [0, 1, 2, 3]
    assert differences_from_newest(ledger) == []


@pytest.mark.parametrize(
    ("lines", "words"), [(0, "missing or empty"), (1, "lines are missing after line 1")]
)
def test_lines_that_are_missing_at_the_end_are_found(ledger, lines, words):
    whole = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(whole[:lines]))
    with pytest.raises(PerdureError, match=words):
        read_ledger(ledger)
    if lines:
        with pytest.raises(PerdureError, match=rf"{words}, or .*does not belong to this ledger"):
            mend_ledger(ledger)


def test_newest_json_of_another_ledger_is_named_and_is_written_again_once_deleted(ledger):
    whole, newest = ledger.read_bytes(), ledger.with_name(NEWEST)
    newest_content = newest.read_bytes()
    line = json.dumps({"stage": 2, "previous": "0" * 64}).encode()
    write_newest(ledger, line)
    for read in (read_ledger, mend_ledger):
        with pytest.raises(PerdureError, match=r"newest\.json does not belong to this ledger"):
            read(ledger)
    newest.unlink()
    assert len(mend_ledger(ledger)) == 1
    assert (ledger.read_bytes(), newest.read_bytes()) == (whole, newest_content)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"line": 1, "sha256": ""}', "\xff"])
def test_a_ledger_without_newest_json_is_read_and_gets_one(ledger, content):
    newest = ledger.with_name(NEWEST)
    if content is None:
        newest.unlink()
    else:
        newest.write_text(content, encoding="latin-1")
    assert stages(ledger) == [0, 1, 2]
    state = "missing (as in lineages of earlier releases)" if content is None else "damaged"
    assert differences_from_newest(ledger)[0].startswith(f"{newest}: {state}, so damage")
    append(ledger, {"stage": 3})
    assert differences_from_newest(ledger) == []
    ledger.write_text(ledger.read_text().replace('"stage": 3', '"stage": 7'))
    with pytest.raises(PerdureError, match="was changed"):
        read_ledger(ledger)


def test_a_ledger_to_which_an_earlier_release_appended(ledger):
    newest = ledger.with_name(NEWEST)
    earlier = newest.read_text()
    append(ledger, {"stage": 3})
    newest.write_text(earlier)
    assert stages(ledger) == [0, 1, 2, 3]
    assert "is of line 3" in differences_from_newest(ledger)[0]


def test_a_second_writer_is_refused_and_the_first_one_lets_go_at_its_end(tmp_path):
    with locked(tmp_path), pytest.raises(PerdureError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_text_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_lines_are_counted_without_a_line_in_memory(tmp_path):
    file = tmp_path / "memory.jsonl"
    with file.open("wb") as sparse:
        sparse.write(b"a\nb\n")
        sparse.truncate(256 << 20)
    tracemalloc.start()
    try:
        assert line_count(file) == 2
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
