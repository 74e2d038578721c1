"""Rows in batches with others of their length: the order, the old rows, and going on."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marks import at_least
from perdure.train.grouping import grouped_order, length, padding_share, spread_by_length
from perdure.train.memory import Memory
from tiny import KINDS
from train.engine import engine, learned, same, stopped_and_resumed, tiny_base


pytestmark = pytest.mark.own


GROUPS = {"train_sampling_strategy": "group_by_length"}
LENGTHS = st.lists(st.integers(1, 256), min_size=1, max_size=200)


def rows_of(lengths):
    return [{"input_ids": [7] * n, "labels": [7] * n} for n in lengths]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 2))
def test_an_order_has_each_row_once_the_longest_first_and_the_short_step_last(
    lengths, rows_a_step, seed, epoch
):
    order = grouped_order(lengths, rows_a_step, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order[0]] == max(lengths)
    assert order == grouped_order(lengths, rows_a_step, seed, epoch)


def test_an_order_is_another_one_in_every_epoch_and_for_every_seed():
    lengths = [1 + i % 50 for i in range(200)]
    orders = {tuple(grouped_order(lengths, 4, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_long_steps_do_not_come_first():
    """Within a group, steps are in random order: two halves of it are about as long."""
    lengths = [1 + i for i in range(400)]
    order = grouped_order(lengths, 4, seed=0, epoch=0)
    first, second = order[4:100], order[100:196]
    means = [sum(lengths[i] for i in half) / len(half) for half in (first, second)]
    assert abs(means[0] - means[1]) < 60  # sorted, they would differ by 200 in their group


def test_the_share_of_padding_is_that_of_the_batches():
    rows = rows_of([1, 4, 2, 2])
    assert padding_share(rows, [0, 1, 2, 3], 2, "causal") == 1 - 9 / 12
    assert padding_share(rows, [0, 2, 3, 1], 2, "causal") == 1 - 9 / 12
    assert padding_share(rows, [2, 3, 1, 0], 1, "causal") == 0
    unlike = [{"input_ids": [7], "labels": [7] * 3}, {"input_ids": [7] * 2, "labels": [7]}]
    assert padding_share(unlike, [0, 1], 2, "seq2seq") == 1 - 7 / 10


def test_grouping_leaves_a_sixth_of_the_padding():
    lengths = [8 + (i * i * 37) % 249 for i in range(512)]
    rows = rows_of(lengths)
    at_random = padding_share(rows, range(512), 8, "causal")
    grouped = padding_share(rows, grouped_order(lengths, 8, 0, 0), 8, "causal")
    assert grouped < at_random / 6


# Of each micro-batch, the lengths of its new rows, and which of the remembered rows it has drawn.
BATCHES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 256), min_size=2, max_size=8),
        st.lists(st.integers(0, 29), max_size=6),
    ),
    min_size=1,
    max_size=40,
)
MEMORY = rows_of([1 + 37 * i % 90 for i in range(30)])
TASKS = {id(row): f"task-{i % 3}" for i, row in enumerate(MEMORY)}


def spread_of(old, new, batches_a_step=1):
    return spread_by_length(old, new, batches_a_step, "causal", lambda row: TASKS[id(row)])


def in_steps(batches, batches_a_step):
    return [
        [row for batch in batches[i : i + batches_a_step] for row in batch]
        for i in range(0, len(batches), batches_a_step)
    ]


@given(BATCHES, st.integers(1, 3))
def test_a_step_keeps_its_numbers_of_rows_of_each_task_and_gets_no_copies(batches, batches_a_step):
    new = [lengths for lengths, _ in batches]
    old = [[MEMORY[i] for i in drawn] for _, drawn in batches]
    spread = spread_of(old, new, batches_a_step)
    assert [len(rows) for rows in spread] == [len(rows) for rows in old]
    ids = [Counter(id(row) for rows in part for row in rows) for part in (old, spread)]
    assert ids[0] == ids[1]
    for before, after in zip(
        in_steps(old, batches_a_step), in_steps(spread, batches_a_step), strict=True
    ):
        tasks = [Counter(TASKS[id(row)] for row in step) for step in (before, after)]
        assert tasks[0] == tasks[1]
        copies = [len(step) - len({id(row) for row in step}) for step in (before, after)]
        assert copies[1] == copies[0]


def test_a_task_has_its_longest_rows_where_the_new_ones_are_longest():
    """Of 30 rows that are drawn once, two from each task in a step."""
    new = [[length] for length in (5, 80, 20, 60, 40)]
    spread = spread_of([MEMORY[6 * i : 6 * i + 6] for i in range(5)], new)
    order = [1, 3, 4, 2, 0]  # the longest first
    for task in sorted(set(TASKS.values())):
        of_task = [
            [length(row, "causal") for row in spread[i] if TASKS[id(row)] == task] for i in order
        ]
        assert all(len(lengths) == 2 for lengths in of_task)
        assert all(min(a) >= max(b) for a, b in pairwise(of_task))


def test_a_small_memory_is_not_drawn_several_times_into_a_step():
    """With more draws than rows in an epoch, sorting all of them would put copies together."""
    memory = Memory({f"task-{t}": MEMORY[t::3] for t in range(3)}, seed=0)
    old = [memory.step(i, 4) for i in range(63)]
    new = [[1 + 71 * i % 200] for i in range(63)]
    spread = spread_of(old, new)
    assert all(len({id(row) for row in step}) == 4 for step in spread)
    assert spread != old
    for before, after in zip(old, spread, strict=True):
        assert {TASKS[id(row)] for row in before} == {TASKS[id(row)] for row in after}


@given(BATCHES)
def test_a_step_has_the_same_old_rows_however_it_is_divided(batches):
    """In one batch, or in two halves."""
    new = [lengths * 2 for lengths, _ in batches]
    old = [[MEMORY[i] for i in drawn] for _, drawn in batches]
    whole = spread_of(old, new)
    halves = spread_of(
        [half for rows in old for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])],
        [half for lengths in new for half in (lengths[: len(lengths) // 2],) * 2],
        batches_a_step=2,
    )
    for i, rows in enumerate(whole):
        in_halves = halves[2 * i] + halves[2 * i + 1]
        assert Counter(id(row) for row in rows) == Counter(id(row) for row in in_halves)


def test_an_epoch_that_ends_early_has_the_old_rows_of_random_order(tmp_path):
    trainer = engine(tiny_base("causal"), "replay", tmp_path, max_steps=3, **GROUPS)
    uneven(trainer).learn()
    (method,), rehearsal = trainer.methods, trainer.rehearsal
    grouped = rehearsal._grouped_rows(rehearsal.groups, 0)
    at_random = [method.rehearse(batch, 4) for batch in range(len(grouped))]
    learned, drawn = (
        Counter(id(row) for rows in part[:3] for row in rows) for part in (grouped, at_random)
    )
    assert learned == drawn
    assert len(list(learned.elements())) == 6
    assert grouped[3:] == at_random[3:]


def uneven(trainer):
    """Rows of many lengths instead of equal ones, the new and the old."""
    for i, row in enumerate(trainer.train_dataset):
        row["input_ids"] = row["input_ids"] + [5] * (i % 7)
        if trainer.kind != "encoder":
            row["labels"] = row["labels"] + [5] * (i % 7)
    return trainer


@pytest.mark.parametrize("kind", at_least(["causal"], KINDS))
def test_batches_have_rows_of_one_length_and_an_epoch_has_each_row_once(kind, tmp_path):
    trainer = engine(tiny_base(kind), "replay", tmp_path, num_train_epochs=2, **GROUPS)
    uneven(trainer)
    batches, collate = [], trainer.rehearsal.collator

    def spied(rows):
        batches.append(rows)
        return collate(rows)

    spied.kind = kind
    trainer.rehearsal.collator = spied
    trainer.learn()
    new = {id(row) for row in trainer.train_dataset}
    epochs = [batches[:10], batches[10:]]
    for epoch in epochs:
        assert Counter(id(row) for rows in epoch for row in rows if id(row) in new) == Counter(new)
        assert [sum(id(row) not in new for row in rows) for rows in epoch] == [2] * 10
    assert [len(rows) for rows in batches] == [6] * 20
    first, second = ([[id(row) for row in rows] for rows in epoch] for epoch in epochs)
    assert first != second
    spans = [
        max(length(row, kind) for row in rows if id(row) in new)
        - min(length(row, kind) for row in rows if id(row) in new)
        for rows in batches
    ]
    assert sum(spans) / len(spans) < 4  # of rows in random order it would be about 8 (causal: 4)


@pytest.mark.parametrize(
    ("kind", "at"), at_least([("causal", 13)], [(kind, at) for kind in KINDS for at in (7, 10, 13)])
)
def test_a_resumed_run_ends_in_the_same_bytes(kind, at, tmp_path):
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": 1, **GROUPS}
    whole, _ = learned(kind, "replay", tmp_path / "whole", **settings)
    again, _ = stopped_and_resumed(kind, "replay", tmp_path / "again", at, 3, **settings)
    assert same(whole, again)
    other, _ = learned(kind, "replay", tmp_path / "other", num_train_epochs=2)
    assert not same(whole, other)  # it had an effect
