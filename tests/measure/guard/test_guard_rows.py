"""The rows of the guard: the bundled ones, one's own, and samples of them."""

import json
import re
from collections import Counter

import pytest

from perdure.errors import PerdureError
from perdure.measure.guard.checks import passes
from perdure.measure.guard.rows import BUNDLED, read_guard_rows, sampled


pytestmark = pytest.mark.own

ROW = {"prompt": "Who are you?", "check": {"words": [1, 20]}}


def test_the_bundled_rows_cover_skills_and_languages():
    rows = read_guard_rows()
    assert len(rows) >= 190
    skills = {"facts", "arithmetic", "json", "form", "counts", "chat", "refusals"}
    assert {row.skill for row in rows} == skills
    languages = Counter(row.language for row in rows)
    assert set(languages) == {"en", "de", "fr", "es", "it"}
    assert sum(languages.values()) - languages["en"] >= 25


def test_the_bundled_rows_are_named_and_asked_once():
    rows = read_guard_rows()
    assert all(re.fullmatch(rf"{row.skill}-\d\d", row.id) for row in rows)
    questions = Counter(json.dumps(row.messages) for row in rows)
    assert [text for text, times in questions.items() if times > 1] == []


# Rows that ask to choose between words of the prompt, or for a word that the prompt tells.
IN_THE_PROMPT = {
    *("form-14", "form-18", "form-19", "form-21", "form-25", "form-30", "form-31", "form-32"),
    *("chat-31", "chat-32"),
}


def test_no_bundled_row_is_passed_by_its_prompt_or_a_word_of_it():
    # This is how a model answers that has learned nothing but short answers.
    passed = set()
    for row in read_guard_rows():
        text = " ".join(message["content"] for message in row.messages)
        echoes = [row.messages[-1]["content"], *re.findall(r"\w+", text), "a", "yes", "1"]
        spelled = [echo + end for echo in echoes for end in ("", ".")]
        if any(passes(echo, row.checks) for echo in [*spelled, *map(str.lower, spelled)]):
            passed.add(row.id)
    assert passed == IN_THE_PROMPT


def test_the_bundled_file_is_one_row_a_line():
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row.id for row in read_guard_rows()]


def test_only_a_prompt_and_a_check_are_needed(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (ROW, {**ROW, "id": "second"})))
    first, second = read_guard_rows(file)
    assert (first.id, first.skill, first.language) == ("1", "own", "-")
    assert second.id == "second"
    assert first.messages == ({"role": "user", "content": "Who are you?"},)
    assert read_guard_rows([ROW, {**ROW, "id": "second"}]) == (first, second)


def test_a_row_is_asked_as_chat_or_as_text():
    turns = [
        {"role": "user", "content": "Hi, I am Anna."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Who am I?"},
    ]
    (row,) = read_guard_rows([{"messages": turns, "check": {"says": ["Anna"]}}])
    chat = row.as_chat("Be brief.")["messages"]
    assert chat[:-1] == [{"role": "system", "content": "Be brief."}, *turns]
    assert chat[-1]["role"] == "assistant"
    assert row.as_chat(None)["messages"][:-1] == turns
    assert row.as_text("causal", "Be brief.")["prompt"] == (
        "Be brief.\nQuestion: Hi, I am Anna.\nAnswer: Hi!\nQuestion: Who am I?\nAnswer:"
    )
    assert row.as_text("seq2seq", None)["prompt"] == "Hi, I am Anna.\nHi!\nWho am I?"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("text", "expected an object"),
        ({"prompt": "Hi"}, "check must name"),
        ({"check": ROW["check"]}, "either prompt or messages"),
        ({**ROW, "messages": []}, "either prompt or messages"),
        ({**ROW, "prompt": " "}, "prompt is empty"),
        ({**ROW, "checks": {}}, "did you mean 'check'"),
        ({**ROW, "id": 3}, "id must be text"),
        ({"messages": [], "check": ROW["check"]}, "must end with one of the user's"),
        (
            {"messages": [{"role": "assistant", "content": "Hi"}], "check": ROW["check"]},
            "must end with one of the user's",
        ),
        ({"messages": [{"role": "user"}], "check": ROW["check"]}, "content"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(row, words):
    with pytest.raises(PerdureError, match=r"^the rows, row 2") as refused:
        read_guard_rows([ROW, row])
    assert words in str(refused.value)


def test_two_rows_with_one_id_are_refused():
    with pytest.raises(PerdureError, match="row 3: the id 'a' is also that of row 1"):
        read_guard_rows([{**ROW, "id": "a"}, ROW, {**ROW, "id": "a"}])


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PerdureError, match="there are no rows"):
        read_guard_rows(tmp_path / "empty.jsonl")
    with pytest.raises(PerdureError, match="no file"):
        read_guard_rows(tmp_path / "mine.jsonl")


def rows_of(**skills: int):
    """Rows named by their skill and number, the skills one after another."""
    return read_guard_rows(
        [
            {**ROW, "id": f"{skill}{number}", "skill": skill}
            for skill, count in skills.items()
            for number in range(count)
        ]
    )


def test_a_sample_has_as_many_rows_of_each_skill_as_possible():
    rows = rows_of(a=20, b=2, c=20)
    assert Counter(row.skill for row in sampled(rows, 12)) == {"a": 5, "b": 2, "c": 5}
    assert len({row.id for row in sampled(rows, 12)}) == 12


def test_a_sample_keeps_the_order_and_depends_on_its_seed_alone():
    rows = rows_of(a=20, b=20)
    sample = sampled(rows, 10)
    assert sample == sampled(rows, 10)
    assert list(sample) == [row for row in rows if row in sample]
    assert sample != sampled(rows, 10, seed=1)
    assert set(map(str, sampled(rows, 4))) < set(map(str, sample))  # a larger sample only adds rows


def test_without_a_limit_below_their_number_all_rows_are_asked():
    rows = rows_of(a=3, b=1)
    assert sampled(rows, None) == sampled(rows, 4) == sampled(rows, 99) == rows
    with pytest.raises(PerdureError, match="at least 1"):
        sampled(rows, 0)
