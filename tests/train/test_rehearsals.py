"""How often remembered rows are rehearsed: told of every stage, and held below a limit."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from command import perdure
from marks import at_least
from perdure.api import run
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.methods import find, make, names
from perdure.train.memory import Memory
from perdure.train.rehearsals import Rehearsals
from place import learned as lineage_of
from place import setting_for
from train.engine import Stop, Stopped, engine, learned, same, stopped_and_resumed, tiny_base
from train.rehearsed import rehearsed


pytestmark = pytest.mark.own


ROWS = 24  # a task: 3 steps of 8 rows, 2 of them remembered
REHEARSALS = {  # of the second stage: the rows for which a gradient is taken, each once in a step
    "replay": ({"replay": {"ratio": 0.5}}, 6),
    "single": ({"replay": {"ratio": 0.125}}, 3),
    "limited": ({"replay": {"ratio": 0.5, "max_repeats": 2}}, 4),
    "agem": ("agem", 6),
    "der": ({"der": {"rows": 1}}, 6),
    "outer": ({"recurrent_kif": {"inner_steps": 2, "outer_steps": 1}}, 4),
    "burst": ({"fpf": {"steps": 3, "rows": 1}}, 3),
    "epoch": ("dmt", 2),
    "both": (["replay", {"recurrent_kif": {"inner_steps": 3, "outer_steps": 1}}], 8),
}


def memory(sizes, seed=0) -> Any:
    """Of rows that are words: the task's letter and a number."""
    return Memory({t: [f"{t}{i}" for i in range(n)] for t, n in sizes.items()}, seed)  # type: ignore


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsals")
    return setting_for("causal", folder, n=ROWS) | {
        "memory": {"ratio": 0.1, "per_answer": 0},
        "scoring": {"forward": False, "old": "last"},
    }


def test_a_row_is_told_by_what_it_is_and_others_do_not_count():
    one, same_words, other = {"a": 1}, {"a": 1}, {"a": 1}
    rehearsals = Rehearsals({"x": [one], "y": [same_words]})
    rehearsals.count([one, one, other, same_words, one])
    assert rehearsals.times.tolist() == [3, 1]
    assert rehearsals.summary() == {"rows": 2, "mean": 2.0, "most": 3}


def test_a_batch_counts_when_it_is_learned_and_not_when_it_is_made():
    row = {"a": 1}
    rehearsals = Rehearsals({"x": [row]})
    rehearsals.add_batch([row, row])
    rehearsals.add_batch([])
    assert rehearsals.times.tolist() == [0]
    rehearsals.count_batch()
    assert rehearsals.times.tolist() == [2]
    rehearsals.count_batch()
    assert rehearsals.times.tolist() == [2]
    again = Rehearsals({"x": [row]})
    again.load_state_dict(rehearsals.state_dict())
    again.count([row])
    assert (again.times.tolist(), rehearsals.times.tolist()) == ([3], [2])


@pytest.mark.parametrize("kind", REHEARSALS)
def test_a_stage_says_how_often_its_remembered_rows_were_rehearsed(kind, setting, tmp_path):
    method, total = REHEARSALS[kind]
    times = lineage_of(setting, tmp_path / "lineage", method=method).timings()
    assert "rehearsed" not in times["1"]  # there was nothing to remember yet
    summary = times["2"]["rehearsed"]
    assert (summary["rows"], summary["mean"]) == (2, total / 2)
    assert total / 2 <= summary["most"] <= total / 2 + 1


def test_a_method_that_does_not_rehearse_says_nothing(setting, tmp_path):
    assert "rehearsed" not in lineage_of(setting, tmp_path / "lineage").timings()["2"]


@pytest.mark.parametrize("name", [name for name in names() if find(name).rehearses])
def test_every_method_that_rehearses_is_seen_to_do_so(name, setting, tmp_path):
    lineage = lineage_of(setting, tmp_path / "lineage", method=name)
    assert lineage.timings()["2"]["rehearsed"]["mean"] > 0


@pytest.mark.parametrize(
    "method", at_least(["replay"], ["replay", "agem", {"replay": {"max_repeats": 2}}]), ids=str
)
def test_a_run_that_was_stopped_counts_what_one_that_was_not_does(method, setting, tmp_path):
    settings = {**setting, "method": method, "checkpoint_every": 1}
    expected = lineage_of(settings, tmp_path / "whole").timings()["2"]["rehearsed"]
    config = load_config({**settings, "lineage": str(tmp_path / "stopped")})
    with pytest.raises(Stopped):
        run(config, callbacks=[Stop(2, task=2)])
    again = run(load_config({**settings, "lineage": str(tmp_path / "stopped")})).timings()
    assert again["2"]["rehearsed"] == expected


def test_show_tells_it(setting, tmp_path):
    lineage_of(setting, tmp_path / "lineage", method="replay")
    output = perdure("show", tmp_path / "lineage", "--stage", 2).out
    assert "2 remembered rows, each 3.0 times on average, at most 3" in output
    assert "rehearsed" not in perdure("show", tmp_path / "lineage", "--stage", 1).out
    shown = json.loads(perdure("show", tmp_path / "lineage", "--json").out)
    assert shown["rehearsed"] == {"rows": 2, "mean": 3.0, "most": 3}


# --- the limit


SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 7), min_size=1)


@given(SIZES, st.integers(1, 4), st.sampled_from([0.0, 1.0]))
def test_no_row_comes_more_often_than_the_limit_and_all_come_so_often(sizes, limit, decay):
    drawn = Counter(memory(sizes).draw(0, 3000, decay, limit))
    assert set(drawn.values()) == {limit}
    assert len(drawn) == sum(sizes.values())


@given(
    SIZES, st.integers(0, 60), st.integers(0, 60), st.integers(1, 3), st.sampled_from([0.0, 0.7])
)
def test_what_is_left_is_the_draw_without_a_limit_up_to_each_rows_last(
    sizes, start, count, limit, decay
):
    whole, times, expected = memory(sizes).draw(0, start + count, decay), Counter(), []
    for i, row in enumerate(whole):
        times[row] += 1
        if times[row] <= limit and i >= start:
            expected.append(row)
    assert memory(sizes).draw(start, count, decay, limit) == expected


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_without_a_limit_the_draws_are_what_they_were(decay):
    sizes = {"a": 5, "b": 7, "c": 2}
    assert memory(sizes).draw(3, 300, decay, None) == memory(sizes).draw(3, 300, decay)
    assert memory(sizes).draw(3, 300, decay, 10**9) == memory(sizes).draw(3, 300, decay)


def test_replay_stops_rehearsing_a_row_at_the_limit(tmp_path):
    batches = rehearsed({"replay": {"ratio": 0.5, "max_repeats": 2}}, tmp_path)
    assert set(Counter(row for _, old in batches for row in old).values()) == {2}
    assert [len(old) for _, old in batches] == [2] * 6 + [0] * 4  # 6 rows twice; 10 steps
    assert [len(new) for new, _ in batches] == [4] * 10


def test_a_limit_that_is_not_reached_changes_no_bit(tmp_path):
    plain, _ = learned("causal", {"replay": {"ratio": 0.5}}, tmp_path / "a")
    limited, _ = learned("causal", {"replay": {"ratio": 0.5, "max_repeats": 4}}, tmp_path / "b")
    short, _ = learned("causal", {"replay": {"ratio": 0.5, "max_repeats": 1}}, tmp_path / "c")
    assert same(plain, limited)
    assert not same(plain, short)


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize(("at", "every"), [(4, 3), (9, 4)])
def test_a_run_stopped_before_or_after_the_limit_ends_in_the_same_bits(at, every, decay, tmp_path):
    method = {"replay": {"ratio": 0.5, "max_repeats": 2, "decay": decay}}
    whole, _ = learned("causal", method, tmp_path / "whole", checkpoint_every=every)
    again, _ = stopped_and_resumed("causal", method, tmp_path / "again", at, every)
    assert same(whole, again)


def test_replay_hands_its_limit_to_the_draw_with_its_decay(tmp_path):
    trainer = engine(tiny_base("causal"), {"replay": {"decay": 1.0, "max_repeats": 1}}, tmp_path)
    replay: Any = trainer.methods[0]
    tasks = {name: [{"task": name} for _ in range(3)] for name in ("old", "new")}
    replay.context.memory = Memory(tasks, 0)
    rows = [row["task"] for batch in range(20) for row in replay.rehearse(batch, 4)]
    assert Counter(rows) == {"new": 3, "old": 3}


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_1_is_refused(limit):
    with pytest.raises(PerdureError, match=f"max_repeats must be >= 1, got {limit}; null sets"):
        make({"replay": {"max_repeats": limit}})


def test_nothing_remembered_is_nothing_to_count():
    assert torch.equal(Rehearsals({}).state_dict()["times"], torch.zeros(0, dtype=torch.int64))
