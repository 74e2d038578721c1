"""The checks of rows before they are learned: each line, and the rows that give none."""

import pytest

from perdure.data import checks
from perdure.data.task import Split, Task
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


def rows(*pairs):
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def split(split_rows, path="a.csv"):
    return Split(tuple(split_rows), {"path": path}, tuple(range(2, len(split_rows) + 2)))


def task(train, test=None, dev=None, options=None, name="mails"):
    return Task(
        name,
        split(train),
        dev and split(dev, "d.csv"),
        test and split(test, "b.csv"),
        options=options,
    )


SENT = [(f"mail {i}", "good" if i % 2 else "bad") for i in range(20)]
USER, SAID = {"role": "user", "content": "mail 1"}, {"role": "assistant", "content": "good"}


def test_rows_without_a_fault_give_no_line():
    mails = task(rows(*SENT), rows(("mail 90", "good")), rows(("mail 91", "bad")))
    checks.check_task(mails)
    assert checks.warnings([mails]) == []
    texts = task([{"text": "a"}, {"text": "b"}])
    checks.check_task(texts)
    assert checks.warnings([texts]) == []


def test_test_rows_that_are_in_train():
    mails = task(rows(*SENT), rows(("new", "good"), (" mail  3", "good"), ("mail 4", "good")))
    assert checks.warnings([mails]) == [
        "mails: 2 of 3 test rows have the same prompt as a train row (first: b.csv, row 3, as "
        "a.csv, row 5), so their score measures memorisation; remove them from one of the two"
    ]
    with_dev = task(rows(*SENT), None, rows(("mail 0", "bad")))
    assert "1 of 1 dev rows have the same prompt as a train row" in checks.warnings([with_dev])[0]


def test_test_rows_that_are_dev_rows():
    test_rows, dev_rows = rows(("new", "good"), (" mail  90", "good")), rows(("mail 90", "good"))
    assert checks.warnings([task(rows(*SENT), test_rows, dev_rows)]) == [
        "mails: 1 of 2 test rows have the same prompt as a dev row (first: b.csv, row 3, as d.csv, "
        "row 2), so their score is too good: dev rows decide when training stops and which weights "
        "are kept; use other rows for one of the two"
    ]


def test_a_question_is_the_same_as_text_and_as_a_message():
    chats = [{"messages": [USER, SAID]}, {"prompt": [USER], "completion": [SAID]}]
    for chat in chats:
        assert checks.question_text(chat) == checks.question_text(rows(SENT[1])[0])
        lines = checks.leaked([task(rows(*SENT), [chat])])
        assert len(lines) == 1
    turns = {"messages": [USER, SAID, USER, SAID]}
    marked = {"messages": [USER | {"id": 7}, SAID, USER, SAID]}
    assert (
        checks.question_text(turns)
        == checks.question_text(marked)
        != checks.question_text(chats[0])
    )
    assert checks.question_text(turns) != checks.question_text(turns | {"tools": [{"name": "f"}]})


def test_test_rows_that_are_in_train_of_another_task():
    one, two = task(rows(*SENT)), task(rows(("b", "good")), rows(("mail 2", "good")), name="two")
    lines = checks.leaked([one, two])
    assert len(lines) == 1
    assert lines[0].startswith(
        "two: 1 of 1 test rows have the same prompt as a train row of task mails"
    )
    assert lines == checks.leaked([two, one])


def test_answers_that_only_the_test_has():
    mails = task(rows(*SENT), rows(("x", "good"), ("y", "Good"), ("z", "Good"), ("v", "spam")))
    assert checks.unlearned(mails) == [
        "mails: 3 of 4 test rows have an answer that no train row has, so it cannot be learned: "
        "'Good' (did you mean 'good') and 1 more (first: b.csv, row 3); fix it or add train rows"
    ]
    declared = task(rows(("a", "good")), rows(("b", "bad")), options=("good", "bad"))
    assert (
        "1 of 1 test rows have an answer that no train row has, so it cannot be learned: 'bad'"
        in checks.unlearned(declared)[0]
    )
    free = task(rows(*[(f"q{i}", f"a{i}") for i in range(20)]), rows(("b", "new")))
    assert checks.unlearned(free) == []
    right = [{"prompt": "x", "completion": "Good", "references": ["good"]}]
    assert checks.unlearned(task(rows(*SENT), right)) == []


def test_one_prompt_with_different_answers():
    mails = task(rows(("a", "x"), ("b", "x"), ("a ", "y"), ("a", "z"), ("b", "x ")))
    assert checks.contradictions(mails) == [
        "mails: 1 prompt of train has different answers (first: a.csv, row 4, and row 2); fix "
        "them, or give further correct answers as references"
    ]
    right = [*rows(("a", "x")), {"prompt": "a", "completion": "y", "references": ["x"]}]
    assert checks.contradictions(task(right)) == []


def test_rows_that_repeat_others():
    mails = task(rows(("a", "x"), ("b", "x"), ("a", "x"), (" a", "x\n")))
    assert checks.duplicates(mails, "train") == [
        "mails: 2 of 4 train rows repeat an earlier one (first: a.csv, row 4, as row 2); drop "
        "them, unless they should count more than once"
    ]
    assert len(checks.duplicates(task([{"text": "a"}, {"text": "a"}]), "train")) == 1


def test_rows_that_are_cut():
    train = split(rows(*SENT))
    assert checks.truncated(train, "mails train", [], 8) == []
    assert checks.truncated(train, "mails train", [3, 4], 8) == [
        "mails train: 2 of 20 rows are longer than max_length: 8 (first: a.csv, row 5), so the "
        "middle of their prompt is cut out; raise max_length, or shorten them"
    ]


def test_messages_beside_plain_text():
    assert checks.mixed(task([{"messages": [USER, SAID]}])) == []
    mails = task(rows(("a", "b")), [{"messages": [USER, SAID]}])
    assert checks.mixed(mails) == [
        "mails: some rows are plain text and others messages (first: b.csv, row 2), but only "
        "messages go through the chat template; write them all in one form"
    ]


@pytest.mark.parametrize(
    ("name", "error_line"),
    [
        ("", "a task's name is empty"),
        (" \t", "a task's name is empty"),
        ("mails ", "write 'mails'"),
        ("ma\nils", "write 'mails'"),
        ("ma\udce4ils", "write 'mails'"),
        ("m" * 151, "too long"),
    ],
)
def test_a_name_under_which_nobody_finds_the_task(name, error_line):
    with pytest.raises(PerdureError, match=error_line):
        checks.check_task(task(rows(*SENT), name=name))


@pytest.mark.parametrize("name", ["mails", "SST-2", "mails/2", "почта", "mails of May"])
def test_names_that_are_names(name):
    checks.check_task(task(rows(*SENT), name=name))


@pytest.mark.parametrize(
    ("options", "error_line"),
    [
        (("good", ""), "an option is empty"),
        (("good", "bad", "good "), "option 'good' is declared twice"),
        (
            ("good", "bda"),
            r"a.csv, row 2: the answer 'bad' is not an option .* \(10 of 20 rows .*\); did",
        ),
    ],
)
def test_options_that_are_none(options, error_line):
    with pytest.raises(PerdureError, match=error_line):
        checks.check_task(task(rows(*SENT), options=options))


def test_an_answer_of_the_test_outside_the_options_is_refused_too():
    mails = task(rows(*SENT), rows(("new", "Good")), options=("good", "bad"))
    with pytest.raises(PerdureError, match=r"b\.csv, row 2: .* 'Good' .* did you mean 'good'"):
        checks.check_task(mails)
    checks.check_task(task(rows(*SENT), rows(("new", " good\n")), options=("good", "bad")))


def test_what_a_row_asks_is_the_last_message_of_the_user():
    turns = [
        {"role": "system", "content": "You sort messages."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "My gears  jump."},
        {"role": "assistant", "content": "repair"},
    ]
    assert checks.asked_text({"messages": turns}) == "My gears jump."
    assert checks.asked_text({"prompt": turns[:-1], "completion": turns[-1:]}) == "My gears jump."
    assert checks.asked_text({"prompt": "one two", "completion": " red"}) == "one two"
