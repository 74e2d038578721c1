"""A short pass of `benchmarks/durability/fuzz.py`: readers refuse damaged files with one line."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import fuzz
import fuzz_inputs
import fuzz_readers

from perdure.errors import PerdureError


pytestmark = pytest.mark.own
INPUTS = 12  # changed documents of each reader
LARGEST = 900  # bytes; larger bombs are for the whole command


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_reads_or_refuses_with_one_line(name):
    reader = fuzz.READERS[name]
    small = [number for number, bomb in enumerate(reader.bombs) if len(bomb) <= LARGEST]
    changed = range(len(reader.bombs), len(reader.bombs) + INPUTS)
    with fuzz.place():
        faults = [fuzz.run(reader, n, n + 1, seed=0)[1] for n in (*small, *changed)]
    assert [fault for fault in faults if fault] == []


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name != "rows.json"])
def test_a_valid_document_is_read(name):
    """Otherwise the changed ones would all be refused for another reason."""
    reader = fuzz.READERS[name]
    with fuzz.place():
        outcomes = [fuzz.outcome(reader, reader.pack(document)) for document in reader.documents]
    assert outcomes == ["read"] * len(reader.documents)


def reader_that(does) -> fuzz_readers.Reader:
    return fuzz_readers.Reader("a", "a.json", [{"a": 1}], fuzz_inputs.as_json, [b"bomb"], does)


def raising(error: Exception):
    def read(path: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("does", "what"),
    [
        (lambda path: None, "read"),
        (raising(PerdureError("one line")), "refused"),
        (raising(PerdureError(" ")), "an error without a line"),
        (raising(KeyError("a")), "KeyError at ?: 'a'"),
        (raising(MemoryError()), "more memory than the limit"),
    ],
)
def test_what_a_reader_does_is_said(does, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fuzz.outcome(reader_that(does), b"{}") == what


def test_an_input_depends_on_its_number_and_the_seed_only():
    reader = reader_that(None)
    inputs = [fuzz_inputs.input_of(reader, number, seed=0) for number in range(200)]
    assert inputs[0] == b"bomb"
    assert inputs == [fuzz_inputs.input_of(reader, number, seed=0) for number in range(200)]
    assert len(set(inputs)) > 100
    assert inputs[1:] != [fuzz_inputs.input_of(reader, number, seed=1) for number in range(1, 200)]
