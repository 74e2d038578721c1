"""What is kept of the guard's answers, and what changed from one stage to the next."""

import gzip

import pytest

from perdure.errors import PerdureError
from perdure.measure.guard.kept import (
    fallen_and_risen,
    keep,
    question_key,
    read_answers,
    write_answers,
)
from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.predict import Generated


pytestmark = pytest.mark.own

ASKED = {"in_template": True, "system": None, "max_new_tokens": 8, "bf16": False}
# Two rows ask the same question and check something else.
ROWS = read_guard_rows(
    [
        {"id": "a", "prompt": "Where is Rome?", "check": {"says": ["Italy"]}},
        {"id": "b", "prompt": "Where is Rome?", "check": {"words": [1, 3]}},
        {"id": "c", "prompt": "Say yes.", "check": {"says": ["yes"]}},
    ]
)


def answered(*texts: str | None):
    base = Generated(prompt=[1], ids=[2, 3], ended=True, text="In Italy, yes.")
    answers = [None if text is None else Generated([1], [2], True, text) for text in texts]
    return {
        row.id: keep(row, question_key(row, **ASKED), base, answer)
        for row, answer in zip(ROWS, answers, strict=True)
    }


def test_rows_that_ask_the_same_are_kept_apart(tmp_path):
    kept = answered("In Italy.", "In Italy, the country of pizza.", None)
    assert kept["a"].question == kept["b"].question != kept["c"].question
    assert [row.passes for row in kept.values()] == [True, False, None]
    assert [row.base_passes for row in kept.values()] == [True, True, True]
    write_answers(tmp_path / "guard.json.gz", kept)
    assert read_answers(tmp_path / "guard.json.gz") == kept


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (("Italy", "a", "yes"), ("no", "a", "no"), (2, 0)),
        (("no", "a", "no"), ("Italy", "a", "no"), (0, 1)),
        ((None, None, None), ("Italy", "a", "yes"), (0, 0)),  # only the base had been asked
        (("Italy", "a", "yes"), (None, None, None), (0, 0)),
        (("", "a", "yes"), ("Italy", "a", "yes"), (0, 1)),
    ],
)
def test_only_what_was_answered_twice_is_compared(before, now, expected):
    assert fallen_and_risen(ROWS, answered(*before), answered(*now)) == expected
    assert fallen_and_risen(ROWS, {}, answered(*now)) == (0, 0)


def test_the_checks_of_now_judge_both_answers():
    strict = read_guard_rows(
        [
            {"id": row.id, "prompt": row.messages[-1]["content"], "check": {"ends": "!"}}
            for row in ROWS
        ]
    )
    before = answered("Italy", "Italy", "yes!")
    now = {
        row.id: keep(
            row, question_key(row, **ASKED), before[row.id].base, Generated([1], [2], True, "no")
        )
        for row in strict
    }
    assert fallen_and_risen(strict, before, now) == (1, 0)


@pytest.mark.parametrize("key", [{"bf16": True}, {"system": "x"}, {"max_new_tokens": 9}])
def test_another_way_of_asking_is_another_question(key):
    assert question_key(ROWS[0], **ASKED) != question_key(ROWS[0], **{**ASKED, **key})


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b'{"a": {"x": 1}}', mtime=0)])
def test_a_damaged_file_is_told_in_a_line(tmp_path, content):
    file = tmp_path / "guard.json.gz"
    file.write_bytes(content)
    with pytest.raises(PerdureError, match=r"damaged.*restore it from a copy"):
        read_answers(file)
