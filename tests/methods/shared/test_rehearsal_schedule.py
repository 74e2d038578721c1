"""Old rows spread over an epoch: between processes, and where the last micro-batch is short."""

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from perdure.methods.shared.rehearsal_schedule import RehearsalSchedule


pytestmark = pytest.mark.own


class Loader:
    """What `RehearsalSchedule` asks of a loader, for a process whose micro-batches are these."""

    def __init__(self, rows: int, batches: list[Any]):
        self.dataset, self.batches = range(rows), batches

    def __len__(self):
        return len(self.batches)


def drawn(rows: int, size: int, processes: int, memory: int, old: int, epochs=1, drop=False):
    """Of each process's micro-batches, epoch by epoch, the old rows, as `rehearse` draws them."""
    sampler = BatchSampler(range(rows), size, drop)
    args: Any = SimpleNamespace(train_batch_size=size, world_size=processes)
    by_process = []
    for process in range(processes):
        loader = Loader(rows, list(BatchSamplerShard(sampler, processes, process)))
        schedule = RehearsalSchedule([{"id": i} for i in range(memory)], 3, args, loader)
        parts = [
            schedule.draw((e * len(loader) + b) * processes + process, old)
            for e in range(epochs)
            for b in range(len(loader))
        ]
        by_process.append([[row["id"] for row in part] for part in parts])
    return by_process


sizes = st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(1, 20)


@given(*sizes, st.integers(0, 60))
def test_an_epoch_of_all_processes_has_all_its_old_rows(rows, size, processes, memory, old):
    parts = drawn(rows, size, processes, memory, old)
    ids = [i for process in parts for part in process for i in part]
    assert len(ids) == old
    counts = [ids.count(i) for i in range(memory)]
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(0, 60))
def test_micro_batches_of_one_size_differ_by_at_most_one(batches, size, memory, old):
    counts = [len(part) for part in drawn(batches * size, size, 1, memory, old)[0]]
    assert max(counts) - min(counts) <= 1


def test_two_processes_have_together_the_rows_of_one():
    one, two = drawn(24, 8, 1, 7, 11, epochs=2)[0], drawn(24, 4, 2, 7, 11, epochs=2)
    assert one == [a + b for a, b in zip(*two, strict=True)]


def test_where_the_last_rows_are_dropped_the_old_ones_are_still_all_there():
    assert sum(map(len, drawn(30, 8, 1, 20, 13, drop=True)[0])) == 13


def test_without_rows_there_is_nothing_to_draw():
    assert drawn(8, 4, 1, 0, 5) == [[[], []]]
