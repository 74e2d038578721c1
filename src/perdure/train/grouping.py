"""Batches of rows of about the same length, so that few tokens are padding.

The setting is transformers' own, `train_sampling_strategy: group_by_length`. What is added to it:
the order of an epoch depends only on (seed, epoch), so that a resumed run needs no stored state;
the steps are shuffled, so that long rows do not come first; and remembered rows are exchanged
between the batches, so that they are about as long as the new rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from perdure.models.kinds import Kind
from perdure.seeds import derive
from perdure.train.step import rows_of_a_step


Features = dict[str, Any]


def padded_lengths(feature: Features, kind: Kind) -> tuple[int, ...]:
    """The numbers of a row's tokens that are padded in a batch, each to the longest of its kind.

    They are those of its input, and for an encoder-decoder those of its input and its target.
    """
    inputs = len(feature["input_ids"])
    return (inputs, len(feature["labels"])) if kind == "seq2seq" else (inputs,)


def length(feature: Features, kind: Kind) -> int:
    """The number of tokens of a row that go through the model."""
    return sum(padded_lengths(feature, kind))


def grouped_order(lengths: Sequence[int], rows_a_step: int, seed: int, epoch: int) -> list[int]:
    """The order of the rows in an epoch: steps of rows of about the same length.

    Rows are shuffled, taken in groups of at most 50 steps (at least four groups, if there are so
    many steps), and sorted within a group, as transformers does it. Then the steps are shuffled.
    The step with the longest row stays the first, so that a lack of memory shows at once, and a
    step that is not full stays the last.
    """
    generator = torch.Generator().manual_seed(derive(seed, "grouped", epoch))
    rows = get_length_grouped_indices(lengths, rows_a_step, generator=generator)
    steps = [rows[i : i + rows_a_step] for i in range(0, len(rows), rows_a_step)]
    last = len(steps) - (len(steps[-1]) < rows_a_step)
    middle = range(1, max(last, 1))
    shuffled = [middle[i] for i in torch.randperm(len(middle), generator=generator).tolist()]
    return [row for step in (0, *shuffled, *range(max(last, 1), len(steps))) for row in steps[step]]


def padding_share(
    features: Sequence[Features], order: Sequence[int], batch_size: int, kind: Kind
) -> float:
    """The share of padding among all tokens of the batches, if rows are taken in this order."""
    tokens = slots = 0
    for start in range(0, len(order), batch_size):
        rows = [padded_lengths(features[i], kind) for i in order[start : start + batch_size]]
        tokens += sum(map(sum, rows))
        slots += len(rows) * sum(map(max, zip(*rows, strict=True)))
    return 1 - tokens / max(slots, 1)


class GroupedSampler(Sampler[int]):
    """Yields the rows of an epoch in `grouped_order`.

    Args:
        features: the new rows.
        args: the training's arguments; all processes have the same order.
        kind: the kind of model.
        epoch: returns the number of the epoch that begins, from 0. A DataLoader that skips batches
            to resume, or is shared by several processes, does not tell its sampler.
    """

    def __init__(
        self,
        features: Sequence[Features],
        args: TrainingArguments,
        kind: Kind,
        epoch: Callable[[], int],
    ):
        self.lengths = [length(feature, kind) for feature in features]
        self.size, self.processes = args.train_batch_size, args.world_size
        self.rows_a_step, self.seed, self.epoch = rows_of_a_step(args), args.seed, epoch
        self.order = lru_cache(maxsize=2)(self._order)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch())

    def _order(self, epoch: int) -> list[int]:
        return grouped_order(self.lengths, self.rows_a_step, self.seed, epoch)

    def batches(self, epoch: int, count: int) -> list[list[int]]:
        """The lengths of the new rows in each of an epoch's `count` micro-batches.

        Several processes have as many rows each, so that the first rows may come again at the end.
        """
        order = self.order(epoch)
        if self.processes > 1:
            order = list(islice(cycle(order), count * self.size))
        lengths = [self.lengths[i] for i in order]
        return [lengths[i * self.size : (i + 1) * self.size] for i in range(count)]


def spread_by_length(
    old: Sequence[Sequence[Features]],
    new: Sequence[Sequence[int]],
    batches_a_step: int,
    kind: Kind,
    task_of: Callable[[Features], str | None],
) -> list[list[Features]]:
    """Exchange old rows between micro-batches, so that they are about as long as the new rows.

    A step keeps the number of its old rows of each task. Rows are exchanged within runs of steps in
    which no row is drawn twice, so that no step gets copies of a row. In such a run, the longest
    rows of a task go to the step with the longest new row, and so on; then the rows of a step go to
    its micro-batches in the same way. So a step has the same rows however it is divided into
    micro-batches.

    Args:
        old: the old rows of each micro-batch.
        new: the lengths of the new rows of each micro-batch.
        batches_a_step: the number of micro-batches in a step; the last step may have fewer.
        kind: the kind of model.
        task_of: returns the task of an old row, None if it is unknown.
    """
    starts = range(0, len(old), batches_a_step)
    steps = [
        [row for batch in old[start : start + batches_a_step] for row in batch] for start in starts
    ]
    longest = [max(map(max, new[start : start + batches_a_step])) for start in starts]
    for run in _runs_without_repeats(steps):
        part = slice(run.start, run.stop)
        steps[part] = _exchanged(steps[part], longest[part], kind, task_of)
    spread: list[list[Features]] = []
    for start, rows in zip(starts, steps, strict=True):
        counts = [len(batch) for batch in old[start : start + batches_a_step]]
        of_batches = [max(lengths) for lengths in new[start : start + batches_a_step]]
        spread += _dealt(rows, counts=counts, longest=of_batches, kind=kind)
    return spread


def _runs_without_repeats(steps: Sequence[Sequence[Features]]) -> list[range]:
    """The longest runs of steps, one after another, in which no row is drawn twice.

    A step that has a row twice by itself is a run of its own.
    """
    runs: list[range] = []
    seen: set[int] = set()
    for number, step in enumerate(steps):
        ids = [id(row) for row in step]
        if not runs or seen.intersection(ids):
            runs.append(range(number, number))
            seen = set()
        repeats = len(set(ids)) < len(ids)
        if repeats and len(runs[-1]):
            runs.append(range(number, number))
        runs[-1] = range(runs[-1].start, number + 1)
        seen.update(ids)
        if repeats:
            runs.append(range(number + 1, number + 1))
            seen = set()
    return runs


def _exchanged(
    steps: Sequence[Sequence[Features]],
    longest: Sequence[int],
    kind: Kind,
    task_of: Callable[[Features], str | None],
) -> list[list[Features]]:
    """The steps with the rows of each task dealt anew; `longest` is of each step's new rows."""
    exchanged: list[list[Features]] = [[] for _ in steps]
    for task in dict.fromkeys(task_of(row) for step in steps for row in step):
        of_task = [[row for row in step if task_of(row) == task] for step in steps]
        rows = [row for step in of_task for row in step]
        counts = [len(step) for step in of_task]
        for step, part in zip(exchanged, _dealt(rows, counts, longest, kind), strict=True):
            step += part
    return exchanged


def _dealt(
    rows: Sequence[Features], counts: Sequence[int], longest: Sequence[int], kind: Kind
) -> list[list[Features]]:
    """Deal rows to places, the longest rows to the place with the longest row of its own."""
    by_length = iter(sorted(rows, key=lambda row: -length(row, kind)))
    dealt: list[list[Features]] = [[] for _ in counts]
    for place in sorted(range(len(counts)), key=lambda i: -longest[i]):
        dealt[place] = list(islice(by_length, counts[place]))
    return dealt
