"""What a small file can hold has limits, and no row needs the others to be in memory."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from perdure.data import files, parquet_sizes
from perdure.data.files import read_records
from perdure.data.forms import MOST_COLUMNS, as_row
from perdure.data.generated import MOST_ROWS, generated_rows
from perdure.data.rows import hash_rows, read_rows
from perdure.errors import PerdureError
from perdure.parsing import without_nulls


pytestmark = pytest.mark.own
ROW = {"prompt": "a", "completion": "b"}


def write(path, content: bytes):
    packed = gzip.compress(content) if path.suffix == ".gz" else content
    path.write_bytes(packed)
    return path


def test_the_first_rows_are_there_before_the_last_ones_are_read(tmp_path):
    line = json.dumps(ROW).encode() + b"\n"
    table = pyarrow.Table.from_pylist([ROW] * 3000)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for file in (
        write(tmp_path / "a.jsonl", line * 3 + b"broken"),
        write(tmp_path / "a.jsonl.gz", line * 3 + b"broken"),
        write(tmp_path / "a.csv", b"prompt,completion\na,b\na,b\na,b\na,b,c\n"),
        tmp_path / "a.parquet",
    ):
        records = read_records(file)
        assert [next(records) for _ in range(3)] == [(number, ROW) for number in (1, 2, 3)]
        if file.suffix != ".parquet":
            with pytest.raises(PerdureError, match="row 4"):
                next(records)
        records.close()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_row_of_too_many_characters_is_refused_before_it_is_whole(name, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_RECORD", 100)
    line = json.dumps(ROW).encode() + b"\n"
    file = write(tmp_path / name, line + b'{"prompt": "' + b"x" * 1000)
    with pytest.raises(PerdureError, match=r"row 2: has more than 100 characters, the limit of"):
        read_rows(file)


def test_a_cell_that_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_RECORD", 100)
    file = write(tmp_path / "a.csv", b'prompt,completion\na,b\n"' + b"x\n" * 1000)
    with pytest.raises(PerdureError, match=r"a\.csv, row 2: has more than 100 characters"):
        list(read_records(file))
    short = write(tmp_path / "b.csv", b"prompt,completion\n" + b'"a\nb",c\n' * 1000)
    assert len(list(read_records(short))) == 1000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_compressed_file_may_not_unpack_to_more_than_its_limit(name, tmp_path, monkeypatch):
    content = {
        "a.jsonl.gz": json.dumps(ROW).encode() + b"\n",
        "a.csv.gz": b"prompt,completion\n",
        "a.json.gz": b" " * 100,
    }[name]
    file = write(tmp_path / name, content * 2000)
    monkeypatch.setattr(files, "MOST_UNPACKED", 10_000)
    monkeypatch.setattr(files, "UNPACKED_RATIO", 2)
    with pytest.raises(PerdureError, match=r"unpacks to more than .* the limit of a compressed"):
        list(read_records(file))
    monkeypatch.setattr(files, "MOST_UNPACKED", 10_000_000)
    if name == "a.jsonl.gz":
        assert len(read_rows(file)) == 2000
        plain = write(tmp_path / "a.jsonl", content * 2000)
        monkeypatch.setattr(files, "MOST_UNPACKED", 10)
        assert len(read_rows(plain)) == 2000


def repeated(text: str, times: int):
    indices = pyarrow.array([0] * times, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(indices, [text])


def test_a_parquet_file_may_not_unpack_to_more_than_its_limit(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": repeated("x" * 10_000, 500), "completion": ["b"] * 500})
    pyarrow.parquet.write_table(table, file)
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr(files, "UNPACKED_RATIO", 2)
    with pytest.raises(PerdureError, match="unpacks to more than 1 MiB"):
        read_rows(file)
    monkeypatch.setattr(files, "LONGEST_RECORD", 1000)
    with pytest.raises(PerdureError, match="row 1: has more than 1000 characters"):
        read_rows(file)


def test_a_parquet_row_that_repeats_a_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_RECORD", 1000)
    lists = pyarrow.ListArray.from_arrays([0, 200], repeated("x" * 10, 200))
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": lists}), file)
    with pytest.raises(PerdureError, match="row 1: has more than 1000 characters"):
        list(read_records(file))


def test_a_parquet_file_holds_what_it_held(tmp_path):
    """Dictionaries, lists, structs, nulls, and more rows than are read at once."""
    records = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
            "tags": ["x", "y"] if number % 3 else None,
            "number": number,
            "text": None if number % 5 == 0 else f"row {number % 7}",
            "when": {"day": 1.5, "name": "now"} if number % 2 else None,
            "empty": [],
        }
        for number in range(2500)
    ]
    file = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, file)
    read = list(read_records(file))
    assert [number for number, _ in read] == list(range(1, 2501))
    assert [record for _, record in read] == [without_nulls(r) for r in table.to_pylist()]


def test_a_date_that_python_does_not_have_is_one_line(tmp_path):
    file = tmp_path / "a.parquet"
    when = pyarrow.array([2**62], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "when": when}), file)
    with pytest.raises(PerdureError, match=r"a\.parquet: not a Parquet file whose rows can be"):
        read_rows(file)


def test_a_json_array_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_ARRAY", 1000)
    file = write(tmp_path / "a.json", json.dumps([ROW] * 100).encode())
    with pytest.raises(PerdureError, match=r"the limit of a \.json file.*\.jsonl file"):
        read_rows(file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("9" * 5000, "row 1: a number has too many digits"),
        (
            '{"prompt": ' + "9" * 5000 + ', "completion": "b"}',
            "row 1: a number has too many digits",
        ),
        ('{"prompt": ' + "[" * 200 + "]" * 200 + "}", "row 1: nested more than 100 levels deep"),
        ('{"prompt": "a", "completion": "b", "tools": "[9' + "9" * 5000 + ']"}', "looks like JSON"),
        (
            '{"messages": [{"role": "user", "content": "a", "\\ud800": 1}, '
            '{"role": "assistant", "content": "b"}]}',
            "message 1: a key holds a broken character",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_python_cannot_use_is_one_line(name, line, words, tmp_path):
    file = tmp_path / name
    file.write_text(line if name == "a.jsonl" or line[0] == "9" else f"[{line}]")
    with pytest.raises(PerdureError, match=words.removeprefix("row 1: ")) as caught:
        hash_rows(read_rows(file))
    assert str(caught.value).startswith(str(file))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(PerdureError, match="is a pipe or a device; write the rows into a file"):
        read_rows(tmp_path / "a.jsonl")


def test_a_row_of_too_many_columns_is_refused():
    columns = {f"c{number}": "x" for number in range(MOST_COLUMNS)}
    with pytest.raises(PerdureError, match="a: has 1002 columns, and the limit is 1000"):
        as_row({**ROW, **columns}, "a")


def test_generated_rows_end():
    with pytest.raises(PerdureError, match=f"at most {MOST_ROWS} rows"):
        generated_rows("topic", "test", 10**18)


def test_statistics_of_a_column_that_end_pyarrow_are_refused(tmp_path, monkeypatch):
    """They end the process that looks at them; the next file is looked at by a new one."""
    file, good = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path in (file, good):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    parquet_sizes._answering.cache_clear()
    program = tmp_path / "program.py"
    dies = "if 'a.parquet' in line: os.abort()\n            answer = {\"size\""
    program.write_text(Path(parquet_sizes.__file__).read_text().replace('answer = {"size"', dies))
    monkeypatch.setattr(parquet_sizes, "__file__", str(program))
    for _ in range(2):
        with pytest.raises(PerdureError, match=r"a\.parquet: not a Parquet file .* is damaged"):
            list(files.read_records(file))
        assert [record for _, record in files.read_records(good)] == [{"text": "a"}, {"text": "b"}]


def test_a_planted_module_is_not_imported_to_read_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("open('imported', 'w').close()")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), "a.parquet")
    parquet_sizes._answering.cache_clear()
    assert len(list(files.read_records(tmp_path / "a.parquet"))) == 1
    assert not (tmp_path / "imported").exists()
