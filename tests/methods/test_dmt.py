"""DMT: each remembered row once an epoch."""

from itertools import accumulate
from typing import Any

import pytest

from perdure.errors import PerdureError
from perdure.methods import make
from train.rehearsed import rehearsed


pytestmark = pytest.mark.own


def epochs(batches, length):
    """The old rows of the micro-batches, epoch by epoch."""
    old = [old for _, old in batches]
    return [old[i : i + length] for i in range(0, len(old), length)]


def flat(parts):
    return [i for part in parts for i in part]


def test_each_remembered_row_comes_once_an_epoch_in_another_order_each_time(tmp_path):
    batches = rehearsed("dmt", tmp_path, rows=30, memory=11, num_train_epochs=3)
    old_epochs = epochs(batches, 8)  # 7 micro-batches of 4 new rows and one of 2
    assert [len(new) for new, _ in batches] == [4, 4, 4, 4, 4, 4, 4, 2] * 3
    assert [sorted(flat(epoch)) for epoch in old_epochs] == [list(range(11))] * 3
    assert len({tuple(flat(epoch)) for epoch in old_epochs}) == 3


def test_they_are_spread_evenly_over_the_new_rows(tmp_path):
    batches = rehearsed("dmt", tmp_path, rows=30, memory=11)
    new, old = ([*accumulate(map(len, part))] for part in zip(*batches, strict=True))
    assert old == [n * 11 // 30 for n in new]
    counts = [len(old) for new, old in batches if len(new) == 4]
    assert set(counts) == {1, 2}


@pytest.mark.parametrize(("share", "count"), [(0.5, 5), (0.3, 3), (0.05, 0), (1.0, 11)])
def test_a_share_is_rounded_down_and_the_same_in_every_epoch(share, count, tmp_path):
    batches = rehearsed({"dmt": {"share": share}}, tmp_path, rows=8, memory=11, num_train_epochs=2)
    first, second = (flat(epoch) for epoch in epochs(batches, 2))
    assert len(set(first)) == len(first) == count
    assert sorted(first) == sorted(second)


def test_a_step_has_the_same_rows_as_one_batch_or_two(tmp_path):
    settings: dict[str, Any] = {"rows": 30, "memory": 11, "num_train_epochs": 2}
    one = rehearsed("dmt", tmp_path / "one", per_device_train_batch_size=8, **settings)
    two = rehearsed("dmt", tmp_path / "two", gradient_accumulation_steps=2, **settings)
    pairs = zip(two[::2], two[1::2], strict=True)
    assert one == [(a + c, b + d) for (a, b), (c, d) in pairs]


def test_the_same_seed_spreads_the_same_rows(tmp_path):
    one, two = (rehearsed("dmt", tmp_path / name, rows=12, memory=5) for name in "ab")
    assert one == two


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_more_than_all_is_refused(share):
    with pytest.raises(PerdureError, match="0 <= share <= 1"):
        make({"dmt": {"share": share}})
