"""A memory smaller than a batch: no remembered row comes twice in one step."""

import math
from collections import Counter

import pytest

from train.engine import engine, learned, same, stopped_and_resumed, tiny_base
from train.rehearsed import rehearsed


pytestmark = pytest.mark.own

OWN_STEPS = [
    {"recurrent_kif": {"inner_steps": 2, "outer_steps": 2}},
    {"recurrent_kif": {"inner_steps": 2, "outer_steps": 2, "outer_batch_size": 9}},
    "agem",
    "der",
    {"fpf": {"steps": 3}},
    {"k_fpf": {"k": 2, "steps": 2}},
]


@pytest.mark.parametrize("method", OWN_STEPS, ids=str)
def test_a_step_on_memory_has_each_row_once(method, tmp_path):
    trainer = engine(tiny_base("causal"), method, tmp_path, memory=3, rows=16)
    steps, backward = [], trainer._backward
    trainer._backward = lambda rows, *more, **named: (
        steps.append(rows),
        backward(rows, *more, **named),
    )
    trainer.learn()
    trainer.methods[0].end_task(trainer.base.model)
    assert steps
    rows = {id(row) for row in trainer.methods[0].context.memory.tasks["animal"]}
    for step in steps:
        assert len(step) == 3
        assert {id(row) for row in step} == rows


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("memory", [1, 3])
def test_replay_shares_all_rows_out_over_a_step(memory, accumulated, tmp_path):
    settings = {"gradient_accumulation_steps": accumulated, "num_train_epochs": 2}
    method = {"replay": {"ratio": 1.0}}
    batches = rehearsed(method, tmp_path, rows=20, memory=memory, **settings)
    assert len(batches) == 10
    step_of = (
        [0, 1, 2, 3, 4] if accumulated == 1 else [0, 0, 1, 1, 2]
    )  # the last step is half a one
    steps = {}
    for i, (_, old) in enumerate(batches):
        steps.setdefault((i // 5, step_of[i % 5]), []).extend(old)
    for (_, step), old in steps.items():
        assert max(Counter(old).values(), default=1) == 1
        assert len(old) == memory or (accumulated == 2 and step == 2)


def test_replay_counts_what_it_repeats(tmp_path):
    method = {"replay": {"ratio": 1.0, "max_repeats": 2}}
    batches = rehearsed(method, tmp_path, rows=20, memory=3)
    assert [len(old) for _, old in batches] == [3, 3, 0, 0, 0]


@pytest.mark.parametrize("method", [{"replay": {"ratio": 1.0}}, "agem"], ids=str)
def test_a_run_that_stopped_goes_on_with_the_same_rows(method, tmp_path):
    # an epoch of five micro-batches is two steps of two and one of one
    settings = {"memory": 3, "rows": 20, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    whole, _ = learned("causal", method, tmp_path / "whole", checkpoint_every=2, **settings)
    again, _ = stopped_and_resumed("causal", method, tmp_path / "again", 4, 2, **settings)
    assert same(whole, again)


@pytest.mark.parametrize("memory", [2, 12])
@pytest.mark.parametrize(("rows", "ratio"), [(1, 0.5), (2, 0.25), (3, 0.01)])
def test_a_task_smaller_than_a_batch_rehearses_its_share_of_rows_at_least_one(
    memory, rows, ratio, tmp_path
):
    settings = {"rows": rows, "memory": memory, "per_device_train_batch_size": 8}
    batches = rehearsed({"replay": {"ratio": ratio}}, tmp_path, num_train_epochs=4, **settings)
    assert [len(new) for new, _ in batches] == [rows] * 4
    expected = 4 * rows * min(ratio, memory / 8)
    assert sum(len(old) for _, old in batches) == math.ceil(expected) >= 1


def test_a_run_in_which_some_batch_has_an_old_row_is_as_it_was(tmp_path):
    settings = {"rows": 9, "memory": 12, "per_device_train_batch_size": 8, "num_train_epochs": 2}
    batches = rehearsed({"replay": {"ratio": 0.5}}, tmp_path, **settings)
    assert [(len(new), len(old)) for new, old in batches] == [(8, 4), (1, 0)] * 2


def test_a_small_task_that_stopped_goes_on_with_the_same_rows(tmp_path):
    method = {"replay": {"ratio": 0.5}}
    settings = {"rows": 1, "per_device_train_batch_size": 8, "num_train_epochs": 4}
    whole, _ = learned("causal", method, tmp_path / "whole", checkpoint_every=2, **settings)
    again, _ = stopped_and_resumed("causal", method, tmp_path / "again", 3, 2, **settings)
    assert same(whole, again)
    plain, _ = learned("causal", "sequential", tmp_path / "plain", **settings)
    assert not same(whole, plain)
