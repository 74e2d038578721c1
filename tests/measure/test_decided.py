"""Writing ends when an answer is decided, and no score changes by it."""

import pytest

import perdure.measure.predict as predict_module
from measure.test_evaluate import base_of, rows_of_many_lengths
from perdure.data.chat import Frame
from perdure.data.rows import references
from perdure.data.task import Split, Task
from perdure.measure.decided import Undecided
from perdure.measure.evaluate import evaluate
from perdure.measure.metrics import best, find_metric
from perdure.measure.predict import predict
from tiny import tiny_tokenizer


pytestmark = pytest.mark.own


def task_of(rows, metric):
    return Task(name="t", train=Split(rows), test=Split(rows), metric=metric)


def with_answers(base, rows, length):
    """The rows with references of which the model's own answers, whole or begun, are a part."""
    free, _ = predict(base, rows, "generate", None, 64, length)
    answered_rows = []
    for i, (row, answer) in enumerate(zip(rows, free, strict=True)):
        words = answer.split() or ["red"]
        right = [answer or "red", " ".join(words[:2]), words[0].upper() + "  ", "green cat"][i % 4]
        answered_rows.append({**row, "completion": f" {right}", "references": ["red", "blue dog"]})
    return answered_rows


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("metric", ["exact_match", "accuracy"])
def test_no_score_changes_when_writing_ends_with_the_decision(kind, metric, monkeypatch):
    base = base_of(kind)
    rows = with_answers(base, rows_of_many_lengths(), 8)
    free, _ = predict(base, rows, "generate", None, 64, 24)
    expected = [
        best(find_metric(metric), answer, references(row))
        for answer, row in zip(free, rows, strict=True)
    ]
    lengths, real = [], predict_module.generate_ids

    def generate(*args, **settings):
        lengths.append([len(ids) for ids in real(*args, **settings)])
        return real(*args, **settings)

    monkeypatch.setattr(predict_module, "generate_ids", generate)
    cell, answers = evaluate(base, task_of(rows, metric), "generate", 5, 64, 24)
    scores = [
        best(find_metric(metric), answer, references(row))
        for answer, row in zip(answers.answers, rows, strict=True)
    ]
    assert scores == expected
    assert cell.score == pytest.approx(sum(expected) / len(expected))
    wrong = [n for n, score in zip(lengths[0], expected, strict=True) if not score]
    assert wrong
    assert max(wrong) < 24


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_an_answer_that_is_wrong_ends_one_token_behind_the_longest_reference(kind):
    base = base_of(kind)
    rows = [{**row, "completion": " down up"} for row in rows_of_many_lengths(6)]
    longest = len(base.tokenizer(" down up", add_special_tokens=False)["input_ids"])
    decided, _ = predict(base, rows, "generate", None, 64, 24, exact=True)
    free, _ = predict(base, rows, "generate", None, 64, longest + 1)
    assert decided == free


@pytest.mark.parametrize("metric", ["rouge_l", "token_f1"])
def test_an_answer_scored_by_its_words_is_written_to_its_end(metric):
    base, rows = base_of("causal"), rows_of_many_lengths(6)
    _, answers = evaluate(base, task_of(rows, metric), "generate", 4, 64, 24)
    assert answers.answers == predict(base, rows, "generate", None, 64, 24)[0]


def test_what_the_template_writes_around_an_answer_does_not_decide_it():
    tokenizer = tiny_tokenizer("causal")

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def undecided(frame):
        return Undecided([["red"]], [frame], tokenizer, set())

    header = undecided(Frame("green cat ", " down", None))
    assert header(0, ids("green cat red down")), "the template's own, and the right answer"
    assert not header(0, ids("green cat blue down")), "the template's own, and a wrong answer"
    assert not header(0, ids("blue blue blue blue")), "not even the template's own"
    assert header(0, ids("green")), "shorter than the longest reference"
    thinking = undecided(Frame("", "", "</think>"))
    assert thinking(0, ids("blue blue blue blue")), "thoughts of any length may come first"
    plain = undecided(None)
    assert plain(0, ids("red"))
    assert not plain(0, ids("red red"))
    assert not plain(0, ids("blue red"))
