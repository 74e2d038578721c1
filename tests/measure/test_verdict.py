"""What a stage gained and lost, from the answers before and after it."""

import pytest

from perdure.errors import PerdureError
from perdure.measure.predictions import Predictions, read_predictions, write_predictions
from perdure.measure.verdict import Asked, collapsed, compare, verdict
from perdure.reporting.verdict import words


pytestmark = pytest.mark.own


def scored(*scores):
    return Predictions([f"answer {i}" for i in range(len(scores))], [float(s) for s in scores])


def test_a_change_counts_the_rows_that_fell_and_rose():
    change = compare(scored(1, 1, 0, 0, 0.5), scored(0, 1, 1, 0, 0.4))
    assert change is not None
    assert (change.before, change.after) == (0.5, pytest.approx(0.48))
    assert (change.rows, change.fell, change.rose, change.p) == (5, 2, 1, 0.5)
    assert compare(scored(1), None) is None
    unknown = compare(None, scored(1, 0))
    assert unknown is not None
    assert (unknown.before, unknown.after, unknown.p) == (None, 0.5, 1.0)


ANIMALS = Asked(["cat", "dog", "cat", "dog", "cat", "dog"], ["cat", "dog"])
COLOURS = Asked(["red", "blue", "red", "blue", "red", "blue"], ["red", "blue"])


@pytest.mark.parametrize(
    ("answers", "warning"),
    [
        (["cat", "dog", "dog", "cat", "dog", "cat"], None),  # wrong, but not collapsed
        (["cat"] * 6, "all 6 answers are 'cat'"),
        (["", " ", "", "cat", "dog", ""], "4 of 6 answers are empty"),
        (["red", "blue", "red", "cat", "dog", "dog"], "3 of 6 answers are those of the task"),
        (["cat"] * 4, None),  # too few to say
    ],
)
def test_a_collapse_is_named(answers, warning):
    line = collapsed(answers, ANIMALS, {"colour": COLOURS})
    assert line is None if warning is None else warning in str(line)


def test_one_answer_is_no_collapse_where_it_is_the_right_one():
    assert collapsed(["cat"] * 6, Asked(["cat"] * 6, None), {}) is None


def test_answers_that_two_tasks_share_are_not_another_tasks():
    yes_no = Asked(["yes", "no"] * 3, ["yes", "no"])
    answers = ["yes", "no", "no", "yes", "yes", "no"]
    assert collapsed(answers, yes_no, {"other": yes_no}) is None


def judged(before, after, new="new"):
    task_rows = {
        name: Asked([str(i) for i in range(len(p.answers))], None) for name, p in after.items()
    }
    return verdict(new, before, after, task_rows)


def test_what_is_beyond_noise_is_lost_and_the_rest_is_not():
    before = {"fell": scored(*[1] * 10), "noise": scored(1, 1, 1, 0, 0, 0), "new": scored(0, 0)}
    after = {
        "fell": scored(*[0] * 7, 1, 1, 1),
        "noise": scored(0, 0, 1, 0, 0, 1),
        "new": scored(1, 1),
    }
    result = judged(before, after)
    assert result["lost"] == ["fell"]
    assert result["old"]["fell"]["p"] == 1 / 128
    assert result["old"]["noise"]["p"] > 0.05
    assert (result["learned"]["before"], result["learned"]["after"]) == (0.0, 1.0)


def test_many_tasks_need_more_evidence_each():
    five, none = scored(*[1] * 5), scored(*[0] * 5)  # p = 1/32 alone
    assert judged({"a": five}, {"a": none})["lost"] == ["a"]
    names = ("a", "b", "c")
    before = dict.fromkeys(names, five)
    after = {"a": none, "b": scored(*[1] * 5), "c": scored(*[1] * 5)}
    assert judged(before, after)["lost"] == []  # 3/32 after Holm's correction


def test_a_task_without_earlier_answers_takes_no_part_in_the_correction():
    five, none = scored(*[1] * 5), scored(*[0] * 5)  # p = 1/32 alone
    assert judged({"a": five}, {"a": none, "unknown": five})["lost"] == ["a"]


def test_a_task_that_was_lost_before_is_told_apart_from_one_that_was_kept():
    high, low = scored(*[1] * 8), scored(*[0] * 8)
    after = {"gone": low, "kept": high}
    task_rows = {name: Asked(list("abcdefgh"), None) for name in after}
    result = verdict("new", after, after, task_rows, first={"gone": high, "kept": high})
    assert (result["lost"], result["lost_before"]) == ([], ["gone"])


def test_a_collapse_is_lost_also_within_noise():
    before = {"animal": Predictions(["cat", "dog", "cat", "dog", "cat", "cat"], [1, 1, 1, 1, 1, 0])}
    after = {"animal": Predictions(["cat"] * 6, [1, 0, 1, 0, 1, 0])}
    result = verdict("new", before, after, {"animal": ANIMALS})
    assert result["old"]["animal"]["p"] > 0.05
    assert result["lost"] == ["animal"]


def test_predictions_are_read_as_they_were_written_and_always_in_the_same_bytes(tmp_path):
    predictions = {"before": {"new": scored(0)}, "after": {"old": scored(1, 0.5), "none": scored()}}
    first, second = tmp_path / "first.json.gz", tmp_path / "second.json.gz"
    write_predictions(first, predictions)
    write_predictions(second, predictions)
    assert first.read_bytes() == second.read_bytes()
    read_back = read_predictions(first)
    assert read_back == {"before": predictions["before"], "after": {"old": scored(1, 0.5)}}
    assert read_predictions(tmp_path / "absent") == {"before": {}, "after": {}}
    second.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(PerdureError, match="damaged"):
        read_predictions(second)


def test_what_is_below_its_first_score_on_few_rows_is_told():
    zeros = scored(0, 0, 0, 0)
    after = {"new": scored(1), "old": zeros, "never": zeros}
    judged = verdict("new", after, after, {}, first={"old": scored(1, 1, 1, 1), "never": zeros})
    assert judged["lost_before"] == []
    assert judged["old"]["old"]["first"] == 1.0
    assert "first" not in judged["old"]["never"]
    text = "\n".join(line for line, _ in words({**judged, "suggestion": None}, 2))
    assert "below its first score, 1.000, on too few rows to judge: old 0.000 -> 0.000" in text
    assert "nothing to lose: never 0.000 -> 0.000" in text
