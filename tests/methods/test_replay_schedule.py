"""Replay's power law: the shares of the old tasks, at any draw."""

from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import PerdureError
from perdure.methods import make
from perdure.train.memory import Memory, turns
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


def memory(sizes, seed=0) -> Any:
    """Of rows that are words: the task's letter and a number."""
    return Memory({t: [f"{t}{i}" for i in range(n)] for t, n in sizes.items()}, seed)  # type: ignore


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(1, 300))
def test_after_any_turn_each_has_had_its_share_rounded_down_or_up(weights, n):
    had = Counter()
    for i, (who, number) in enumerate(islice(turns(weights), n), start=1):
        assert number == had[who]
        had[who] += 1
        for other, weight in enumerate(weights):
            assert abs(had[other] - Fraction(i * weight, sum(weights))) < 1


def test_who_weighs_nothing_has_no_turn():
    assert {who for who, _ in islice(turns([3, 0, 1]), 50)} == {0, 2}


@given(st.sampled_from([0.5, 1.0, 2.0, 50.0]), st.integers(1, 6), st.integers(1, 200))
def test_a_task_of_age_a_is_drawn_in_proportion_to_a_to_the_minus_decay(decay, tasks, n):
    names = "abcdef"[:tasks]  # the last is the newest
    shares = {name: (tasks - i) ** -decay for i, name in enumerate(names)}
    drawn = Counter(row[0] for row in memory(dict.fromkeys(names, 5)).draw(0, n, decay))
    assert drawn.total() == n
    for name, share in shares.items():
        assert abs(drawn[name] - n * share / sum(shares.values())) < 1.001


def test_any_window_has_the_shares_too():
    whole = [row[0] for row in memory({"a": 4, "b": 9, "c": 2}).draw(0, 500, 1.0)]
    for start in range(0, 400, 7):
        window = Counter(whole[start : start + 100])
        for name, share in {"a": 2 / 11, "b": 3 / 11, "c": 6 / 11}.items():
            assert abs(window[name] - 100 * share) < 2


def test_a_task_is_exhausted_before_a_row_comes_again_and_then_has_another_order():
    drawn = memory({"a": 20, "b": 20}).draw(0, 60, 1.0)
    newest = [row for row in drawn if row[0] == "b"]
    assert len(newest) == 40
    assert len(set(newest[:20])) == len(set(newest[20:])) == 20
    assert newest[:20] != newest[20:]


@given(st.integers(0, 200), st.integers(1, 50), st.sampled_from([0.3, 1.0]))
def test_a_draw_depends_on_its_number_only(start, count, decay):
    sizes = {"a": 5, "b": 7, "c": 2}
    remembered = memory(sizes)
    assert (
        remembered.draw(start, count, decay) == memory(sizes).draw(0, start + count, decay)[start:]
    )
    assert remembered.draw(start, count, decay) == memory(sizes).draw(start, count, decay)


def test_decay_0_is_the_draw_that_knows_no_age():
    sizes = {"a": 5, "b": 7, "c": 2}
    assert memory(sizes).draw(0, 300, 0.0) == memory(sizes).draw(0, 300)


def test_replay_hands_its_decay_to_the_draw(tmp_path):
    trainer = engine(tiny_base("causal"), {"replay": {"ratio": 1, "decay": 2.0}}, tmp_path)
    replay = trainer.methods[0]
    features = replay.context.memory.tasks["animal"]
    tasks = {name: [{"task": name, **row} for row in features] for name in ("old", "new")}
    replay.context.memory = Memory(tasks, 0)
    rows = [row["task"] for batch in range(10) for row in replay.rehearse(batch, 4)]
    assert Counter(rows) == {"new": 32, "old": 8}  # 1 to 2^-2


def test_a_decay_below_0_is_refused():
    with pytest.raises(PerdureError, match="decay must be >= 0, got -1"):
        make({"replay": {"decay": -1.0}})
