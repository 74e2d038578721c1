"""Scores of a sample of test rows: which rows, what is estimated from them, and how surely."""

from math import comb, sqrt

import pytest

from perdure.errors import PerdureError
from perdure.measure.predictions import (
    Predictions,
    on_common_rows,
    read_predictions,
    write_predictions,
)
from perdure.measure.sampling import estimated, sampled_rows, sampling_interval, shares
from perdure.measure.verdict import Asked, compare, verdict


pytestmark = pytest.mark.own


def sample(rows: list[int], scores: list[float], of: int = 10) -> Predictions:
    return Predictions([f"answer {row}" for row in rows], [float(s) for s in scores], rows, of)


def full(*scores: float) -> Predictions:
    return Predictions([f"answer {row}" for row in range(len(scores))], list(map(float, scores)))


def test_rows_are_divided_evenly_and_what_a_task_lacks_goes_to_the_others():
    assert shares({"a": 90, "b": 90, "c": 90}, 60) == {"a": 20, "b": 20, "c": 20}
    assert shares({"a": 90, "b": 10, "c": 90}, 60) == {"a": 25, "b": 10, "c": 25}
    assert shares({"a": 10, "b": 10}, 60) == {"a": 10, "b": 10}
    many = shares(dict.fromkeys("abcdefg", 90), 3)
    assert sorted(many.values()) == [0, 0, 0, 0, 1, 1, 1]
    assert shares({}, 60) == {}


def test_a_smaller_sample_of_a_task_is_part_of_a_larger_one():
    large = sampled_rows("task", 100, 50, seed=0)
    assert large == sorted(set(large))
    assert set(sampled_rows("task", 100, 20, seed=0)) < set(large) < set(range(100))
    assert large != sampled_rows("other", 100, 50, seed=0)
    assert large != sampled_rows("task", 100, 50, seed=1)


def test_the_luck_of_a_sample_is_no_change_of_the_score():
    easy, hard, mixed = [1.0] * 4, [0.0] * 4, [1.0, 1.0, 1.0, 0.0]
    for rows in (easy, hard, mixed):
        assert estimated(rows, rows, 0.6) == pytest.approx(0.6)  # nothing has changed
    for first in (easy, mixed):
        assert estimated(hard, first, 0.6) == 0.0  # all is forgotten
    assert estimated(easy, mixed, 0.6) == 1.0
    # Of the rows that were right, 2 of 3 still are, and the wrong one still is.
    assert estimated([1.0, 1.0, 0.0, 0.0], mixed, 0.6) == pytest.approx(0.6 * 2 / 3)


def test_a_sample_that_scores_nothing_any_more_is_worth_nothing():
    assert estimated([0, 0], [0.5, 0.5], 0.7) == 0
    assert estimated([0, 0], [1, 0], 0.7) == 0
    assert estimated([0, 0], [0, 0], 0.05) == 0.05  # nothing has changed


def test_scores_that_are_no_zeros_and_ones_stay_in_their_range():
    first, now = [0.2, 0.4, 0.6, 0.8], [0.1, 0.2, 0.3, 0.4]
    assert estimated(now, first, 0.7) == pytest.approx(0.35)
    assert estimated([0.9, 0.9, 0.9, 1.0], [0.9, 0.9, 0.9, 0.9], 1.0) == 1.0


def test_the_interval_is_wilsons_for_rows_without_replacement():
    n, z = 10 * 99 / 90, 1.959963984540054
    interval = sampling_interval(0.3, 10, 100)
    center, width = 0.3 + z**2 / 2 / n, z * sqrt(0.3 * 0.7 / n + (z / 2 / n) ** 2)
    assert interval.low == pytest.approx((center - width) / (1 + z**2 / n))
    assert interval.high == pytest.approx((center + width) / (1 + z**2 / n))
    assert sampling_interval(1.0, 4, 100).high == 1.0
    point = sampling_interval(0.3, 100, 100)
    assert (point.low, point.high) == (0.3, 0.3)


def test_the_interval_holds_the_mean_of_all_rows_in_95_of_100_samples():
    count, rows = 40, 10
    probabilities = []
    for right in range(count + 1):
        for k in range(max(0, rows - count + right), min(rows, right) + 1):
            interval = sampling_interval(k / rows, rows, count)
            if interval.low - 1e-12 <= right / count <= interval.high + 1e-12:
                ways = comb(right, k) * comb(count - right, rows - k)
                probabilities.append(ways / comb(count, rows))
    assert sum(probabilities) / (count + 1) > 0.95


def test_answers_are_compared_on_the_rows_that_were_asked_both_times():
    first = full(1, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    common = on_common_rows(first, sample([0, 3, 9], [1, 0, 0]))
    assert common is not None
    assert common[0] == sample([0, 3, 9], [1, 1, 0])
    fewer = on_common_rows(sample([0, 3, 9], [1, 1, 0]), sample([3, 5], [0, 1]))
    assert fewer is not None
    assert (fewer[0].rows, fewer[1].scores) == ([3], [0.0])
    assert on_common_rows(first, sample([0], [1], of=11)) is None  # other test rows
    assert on_common_rows(sample([1], [1]), sample([2], [1])) is None


def test_a_sample_is_judged_on_its_own_rows():
    first = full(1, 1, 1, 1, 0, 0, 0, 0, 0, 0)
    change = compare(sample([0, 1, 4], [1, 1, 0]), sample([0, 1], [1, 1]), first)
    assert change is not None
    assert (change.before, change.after, change.first) == (1.0, 1.0, 1.0)  # 0.4 on all rows
    assert (change.rows, change.of, change.fell) == (2, 10, 0)


def test_many_small_samples_together_show_a_loss_that_none_shows_alone():
    names = [f"task {i}" for i in range(8)]
    before = {name: sample([1, 2], [1, 1]) for name in names}
    after = {name: sample([1, 2], [0, 1]) for name in names}
    asked = {name: Asked(["right"] * 10, None) for name in names}
    result = verdict("new", before, after, asked, first=before)
    assert (result["lost"], result["lost_before"]) == ([], [])
    together = result["together"]
    assert (together["before"], together["after"]) == (1.0, 0.5)
    assert (together["rows"], together["of"], together["p"]) == (16, 80, 1 / 2**8)
    assert (together["lost"], together["lost_before"]) == (True, False)
    again = verdict("new", after, after, asked, first=before)["together"]
    assert (again["lost"], again["lost_before"]) == (False, True)
    whole = {name: full(0, 1) for name in names}
    assert "together" not in verdict("new", whole, whole, asked)


def test_a_sample_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "predictions.json.gz"
    predictions = {"before": {}, "after": {"old": sample([2, 7], [1, 0]), "new": full(1, 0)}}
    write_predictions(file, predictions)
    assert read_predictions(file) == predictions


@pytest.mark.parametrize("rows", [[2], [7, 2], [2, 2], [-1, 2], [2, 10]])
def test_a_sample_of_rows_that_are_not_there_is_damaged(tmp_path, rows):
    file = tmp_path / "predictions.json.gz"
    whole = sample([2, 7], [1, 0])
    object.__setattr__(whole, "rows", rows)
    write_predictions(file, {"before": {}, "after": {"old": whole}})
    with pytest.raises(PerdureError, match="damaged"):
        read_predictions(file)
