"""Rows with foils, from files and from Python."""

import gzip
import json

import pytest

from perdure.data.probes import Probe, read_probes
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


def written(folder, *rows, name="rows.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_foil_stands_in_the_place_of_the_answer(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file = written(
        tmp_path,
        {"prompt": "a", "completion": " b\n", "foil": "c"},
        {"prompt": "a", "completion": "b", "foil": None, "note": "left behind"},
        {"messages": chat, "foil": "bye"},
        {"prompt": chat[:1], "completion": chat[1:], "foil": "bye"},
    )
    probes, where = read_probes(file)
    assert where == str(file)
    foil_turn = {"role": "assistant", "content": "bye"}
    assert probes == [
        Probe({"prompt": "a", "completion": " b\n"}, {"prompt": "a", "completion": " c\n"}),
        Probe({"prompt": "a", "completion": "b"}),
        Probe({"messages": chat}, {"messages": [chat[0], foil_turn]}),
        Probe(
            {"prompt": chat[:1], "completion": chat[1:]},
            {"prompt": chat[:1], "completion": [foil_turn]},
        ),
    ]


def test_the_foil_of_a_text_is_a_text():
    probes, where = read_probes([{"text": "one two", "foil": "three"}, {"text": "four"}])
    assert probes == [Probe({"text": "one two"}, {"text": "three"}), Probe({"text": "four"})]
    assert where == "the rows"


def test_a_table_and_a_gzipped_file(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,foil\na,b,c\nd,e,\n")
    probes, _ = read_probes(tmp_path / "rows.csv")
    assert [probe.foil and probe.foil["completion"] for probe in probes] == ["c", None]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write('{"text": "a", "foil": "b"}\n')
    assert read_probes(str(tmp_path / "rows.jsonl.gz"))[0] == [Probe({"text": "a"}, {"text": "b"})]


@pytest.mark.parametrize(
    ("row", "error_line"),
    [
        ({"prompt": "a", "completion": "b", "foil": 3}, "row 2: foil must be text, not int"),
        ({"prompt": "a", "completion": "b", "foil": " "}, "row 2: foil is empty"),
        ({"prompt": "a", "foil": "c"}, "row 2: completion is missing"),
        ({"foil": "c"}, "row 2: expected prompt and completion, messages, or text; its keys: foil"),
        ({"text": "a"}, "row 2: rows of text cannot be mixed with others"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(row, error_line, tmp_path):
    rows = ({"prompt": "a", "completion": "b"}, row)
    for source in (rows, written(tmp_path, *rows)):
        with pytest.raises(PerdureError, match=error_line):
            read_probes(source)


def test_no_rows(tmp_path):
    with pytest.raises(PerdureError, match="the rows: the list is empty"):
        read_probes([])
    with pytest.raises(PerdureError, match="holds no rows"):
        read_probes(written(tmp_path))
    with pytest.raises(PerdureError, match=r"did you mean 'rows\.jsonl'"):
        read_probes(tmp_path / "row.jsonl")


def test_a_foil_needs_an_answer_in_words(tmp_path):
    call = {"type": "function", "function": {"name": "go", "arguments": {}}}
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    with pytest.raises(PerdureError, match="row 1: foil needs an answer in words"):
        read_probes(written(tmp_path, {"messages": chat, "foil": "bye"}))
