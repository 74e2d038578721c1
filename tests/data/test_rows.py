import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.data.rows import answer, as_row, hash_rows, read_rows
from perdure.data.stream import open_split
from perdure.data.task import Split, Task, limit_rows
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


ROWS = [
    {"prompt": "is ice cold?", "completion": "yes"},
    {"prompt": "a, b\nc", "completion": "“no”"},
]
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text('prompt,completion\nis ice cold?,yes\n"a, b\nc",“no”\n', encoding="utf-8-sig")
    paths = [
        write(tmp_path / "rows.jsonl", ROWS),
        write(tmp_path / "rows.jsonl.gz", ROWS),
        parquet(tmp_path / "rows.parquet", ROWS),
        table,
    ]
    for path in paths:
        assert read_rows(path) == ROWS
        assert read_rows(str(path)) == ROWS


def test_messages_survive_parquet_with_what_a_template_may_read_of_them(tmp_path):
    messages = [USER | {"name": "x"}, ASSISTANT]  # a table gives both the column `name`
    rows = [{"messages": messages, "id": 7}]
    assert read_rows(parquet(tmp_path / "rows.parquet", rows)) == [{"messages": messages}]


def test_a_csv_cell_may_be_very_long(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "a" * 200_000 + "\n")
    assert len(read_rows(path)[0]["text"]) == 200_000


def test_blank_lines_are_passed_over_but_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": 3}\n')
    with pytest.raises(PerdureError, match=r"rows\.jsonl, row 3: text must be text, not int"):
        read_rows(path)


def test_alpaca_rows_become_prompt_and_completion():
    raw = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert as_row(raw, "r") == {"prompt": "Add.\n1 2", "completion": "3"}
    assert as_row(raw | {"input": ""}, "r") == {"prompt": "Add.", "completion": "3"}


def test_sharegpt_rows_become_messages():
    raw = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert as_row(raw, "r") == {"messages": [USER, ASSISTANT]}
    raw["conversations"][0]["from"] = "humman"
    with pytest.raises(PerdureError, match="did you mean 'human'"):
        as_row(raw, "r")


def test_the_answer_is_what_is_said_last():
    assert answer({"prompt": "a", "completion": " b"}) == " b"
    assert answer({"prompt": [USER], "completion": [ASSISTANT]}) == "hello"
    assert answer({"messages": [USER, ASSISTANT]}) == "hello"
    assert answer({"text": "all"}) == "all"


@pytest.mark.parametrize(
    ("row", "error_line"),
    [
        ([1], "expected an object"),
        ({}, "its keys: none"),
        ({"question": "a"}, "its keys: question"),
        ({"completion": "a"}, "prompt is missing"),
        ({"prompt": "a"}, "completion is missing"),
        ({"prompt": "a", "completion": " "}, "completion is empty"),
        ({"prompt": "", "completion": "a"}, "prompt is empty"),
        ({"prompt": "a", "completion": 3}, "completion must be text, not int"),
        ({"prompt": "a", "completion": "\ud83d"}, "broken character"),
        ({"prompt": [USER], "completion": "a"}, "completion must be a non-empty list"),
        ({"prompt": [USER], "completion": [USER]}, "must end with the assistant's"),
        ({"messages": []}, "must be a non-empty list"),
        ({"messages": "hi"}, "must be a non-empty list"),
        ({"messages": [USER]}, "must end with the assistant's message, not the user's"),
        ({"messages": [ASSISTANT]}, "a message before the assistant's"),
        ({"messages": [USER, {"role": "assistant"}]}, "content of message 2 is missing"),
        ({"messages": [{"content": "hi"}]}, "message 1 must be"),
        ({"text": ""}, "text is empty"),
        ({"instruction": "a"}, "output is missing"),
        ({"conversations": "a"}, "must be a non-empty list"),
    ],
)
def test_a_row_that_is_none_is_an_error_that_names_it(row, error_line, tmp_path):
    path = write(tmp_path / "rows.jsonl", [*ROWS, row])
    with pytest.raises(PerdureError, match=error_line) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}, row 3")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_an_error_that_says_why(tmp_path):
    def said(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PerdureError) as error:
            read_rows(tmp_path / name)
        assert name in str(error.value)
        return str(error.value)

    whole = gzip.compress(b'{"text": "a"}\n' * 100)
    assert "row 2: not JSON" in said("a.jsonl", b'{"text": "a"}\n{"text": "b"\n')
    assert "holds no rows" in said("b.jsonl", b"\n")
    assert "holds no rows" in said("b.csv", b"prompt,completion\n")
    assert "not UTF-8" in said("c.jsonl", b'{"text": "\xff"}\n')
    assert "gzip" in said("d.jsonl.gz", b'{"text": "a"}\n')
    assert "gzip" in said("e.jsonl.gz", whole[: len(whole) // 2])
    assert "Parquet" in said("f.parquet", b"PAR1")
    assert "row 1: more cells than columns" in said("g.csv", b"text\na,b\n")
    assert "completion is missing" in said("h.csv", b"prompt,completion\na,\n")
    assert "convert" in said("i.txt", b"[]")


def test_a_missing_file_is_an_error_that_names_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(PerdureError, match=r"no file .*tran\.jsonl: did you mean 'train\.jsonl'"):
        read_rows(tmp_path / "tran.jsonl")
    with pytest.raises(PerdureError, match="no folder"):
        read_rows(tmp_path / "none" / "train.jsonl")
    with pytest.raises(PerdureError, match="is a folder"):
        read_rows(tmp_path)


def test_the_hash_follows_content_not_the_order_of_keys():
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert hash_rows(ROWS) == hash_rows(turned)
    assert hash_rows(ROWS) != hash_rows(ROWS[::-1])
    assert Split(tuple(ROWS)).sha256 == hash_rows(ROWS)


def test_a_split_is_opened_again_from_its_source(tmp_path):
    rows = [{"text": f"row {i}"} for i in range(30)]
    source = {"path": str(write(tmp_path / "rows.jsonl", rows)), "limit": 7, "seed": 3}
    split = open_split(source)
    assert len(split.rows) == 7
    assert split.sha256 == open_split(split.source).sha256
    assert open_split({"path": source["path"]}).rows == tuple(rows)
    with pytest.raises(PerdureError, match="no rows can be opened from"):
        open_split({"file": "x"})


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_generated_split_is_opened_again_from_its_source(split):
    source = {"stream": "generated", "task": "mood", "split": split, "limit": 5, "seed": 1}
    assert open_split(source).sha256 == open_split(source).sha256
    assert len(open_split(source).rows) == 5


@given(n=st.integers(1, 60), limit=st.none() | st.integers(1, 70), seed=st.integers(0, 9))
def test_limited_rows_are_some_of_the_rows_in_order_and_the_seed_decides(n, limit, seed):
    rows = [{"text": str(i)} for i in range(n)]
    limited = list(limit_rows(rows, limit, seed))
    assert len(limited) == (n if limit is None else min(limit, n))
    assert limited == [row for row in rows if row in limited]
    assert limited == list(limit_rows(rows, limit, seed))


def test_a_limit_of_no_rows_is_an_error():
    with pytest.raises(PerdureError, match="at least 1, got 0"):
        limit_rows(ROWS, 0, seed=0)


def test_answers_are_declared_or_the_few_distinct_ones_in_train():
    def task(answers, options=None):
        rows = tuple({"prompt": "a", "completion": completion} for completion in answers)
        return Task("t", Split(rows), options=options)

    assert task("ba").answers() == ("a", "b")
    assert task("ba", options=("z", "a")).answers() == ("z", "a")
    assert task([" a", "a "]).answers() == ("a",)
    assert len(task(map(str, range(50))).answers()) == 50
    assert task(map(str, range(51))).answers() is None
    assert Task("t", Split(({"text": "a"},))).answers() is None
