"""The ledger's chain, its half lines, and the folder's lock."""

import json

import pytest

from perdure.errors import PerdureError
from perdure.lineage.files import locked, write_text
from perdure.lineage.ledger import append, read_ledger


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
