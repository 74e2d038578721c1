"""Mix-review: how many old rows an epoch has, and which."""

from collections import Counter
from typing import Any

import pytest

from perdure.errors import PerdureError
from perdure.methods import make
from train.rehearsed import rehearsed


pytestmark = pytest.mark.own


def old_rows(spec, work, length, **settings):
    """The old rows of each epoch of `length` micro-batches."""
    old = [old for _, old in rehearsed({"mix_review": spec}, work, **settings)]
    epochs = [old[i : i + length] for i in range(0, len(old), length)]
    return [[i for part in epoch for i in part] for epoch in epochs]


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ({"mix": 4.0}, [40, 28, 19, 13]),  # 4 x 10 x (1, 0.7, 0.49, 0.343), rounded down
        ({"mix": 0.5, "decay": 0.5}, [5, 2, 1, 0]),
        ({"mix": 1.25, "decay": 1.0}, [12, 12, 12, 12]),
        ({"mix": 4.0, "decay": 0.0}, [40, 0, 0, 0]),
    ],
)
def test_an_epoch_has_the_published_number_of_old_rows(spec, counts, tmp_path):
    epochs = old_rows(spec, tmp_path, 3, rows=10, memory=6, num_train_epochs=4)
    assert [len(epoch) for epoch in epochs] == counts
    for epoch in epochs:  # as often as it has to, no row comes again before all have come
        often = Counter(epoch)
        assert {often[i] for i in range(6)} <= {len(epoch) // 6, -(-len(epoch) // 6)}


def test_the_rows_are_drawn_anew_for_each_epoch(tmp_path):
    spec = {"mix": 0.5, "decay": 1.0}
    epochs = old_rows(spec, tmp_path, 2, rows=8, memory=40, num_train_epochs=4)
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_they_are_spread_evenly_and_a_step_has_them_as_one_batch_or_two(tmp_path):
    settings: dict[str, Any] = {"rows": 22, "memory": 30, "num_train_epochs": 2}
    spec = {"mix_review": {"mix": 1.6}}
    one = rehearsed(spec, tmp_path / "one", per_device_train_batch_size=8, **settings)
    two = rehearsed(spec, tmp_path / "two", gradient_accumulation_steps=2, **settings)
    assert one == [(a + c, b + d) for (a, b), (c, d) in zip(two[::2], two[1::2], strict=True)]
    first = [len(old) for _, old in two[:6]]
    assert sum(first) == 35
    assert set(first[:5]) == {6, 7}


@pytest.mark.parametrize("spec", [{"mix": -1.0}, {"decay": -0.1}, {"decay": 1.5}])
def test_bad_keywords_are_refused(spec):
    with pytest.raises(PerdureError, match="needs mix >= 0 and 0 <= decay <= 1"):
        make({"mix_review": spec})
