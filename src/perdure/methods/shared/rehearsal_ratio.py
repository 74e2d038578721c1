"""Which old rows are in each micro-batch, if there is a fixed number of them for each new row."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from transformers import TrainingArguments

from perdure.train.memory import Memory
from perdure.train.step import rows_of_a_step


@dataclass
class RehearsalRatio:
    """Draws `ratio` old rows for each new row of a micro-batch.

    If an optimizer step needs more rows than the memory has, it gets each row once. A micro-batch
    with fewer new rows than the others has its share of old rows, rounded. In a task that is so
    small that all its micro-batches would have none, fractions carry over from new row to new row,
    rounded up. A draw depends only on the number of the micro-batch, so a resumed run needs no
    stored state.

    Args:
        ratio: the number of old rows for each new row, >= 0; fractions carry over from one full
            micro-batch to the next.
        decay: as for `Memory.draw`.
        max_repeats: how often a row is drawn in one task at most; None for no limit.
    """

    ratio: float
    decay: float = 0.0
    max_repeats: int | None = None
    sizes: list[int] = field(default_factory=list, init=False)  # of an epoch's micro-batches
    has_none: bool | None = field(default=None, init=False)  # whether all of them round to none

    def begin(self, args: TrainingArguments, loader: Any, steps: int) -> None:
        """Prepare for a task of so many optimizer steps with this DataLoader."""
        self.batches = len(loader) * args.world_size  # micro-batches of an epoch
        full_size, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
        self.sizes = [full_size] * self.batches
        if args.world_size == 1:  # several processes fill their last batches
            self.sizes[-1] = min(len(loader.dataset) - full_size * (self.batches - 1), full_size)
        self.epochs = math.ceil(steps / math.ceil(len(loader) / parts))
        self.has_none = None

    def draw(
        self, memory: Memory, args: TrainingArguments, batch: int, size: int
    ) -> list[dict[str, Any]]:
        """The old rows of a micro-batch, with the arguments of `Method.rehearse`."""
        if not memory or not self.ratio:
            return []
        takes_all = self.ratio * rows_of_a_step(args) > len(memory)
        if self.sizes and self.has_none is None:
            self.has_none = not any(
                self._range(memory, args, number, new, takes_all)[1]
                for number, new in enumerate(self.sizes * self.epochs)
            )
        if self.has_none:
            return self._by_row(memory, args, batch=batch, size=size)
        start, count = self._range(memory, args, batch, size, takes_all)
        if not takes_all:
            return memory.draw(start, count, decay=self.decay, max_repeats=self.max_repeats)
        epoch, place = divmod(batch, self.batches)
        parts = args.gradient_accumulation_steps * args.world_size  # micro-batches of a step
        step = place // parts + epoch * -(-self.batches // parts)
        if self.max_repeats is not None and step >= self.max_repeats:
            return []
        return memory.whole(step)[start : start + count]

    def _range(
        self, memory: Memory, args: TrainingArguments, batch: int, size: int, takes_all: bool
    ) -> tuple[int, int]:
        """The number of the first old row of a micro-batch, and how many it has.

        It is the number of the draw or, if a step `takes_all` rows of the memory, that in the step.
        """
        full_size = args.per_device_train_batch_size
        if takes_all:
            parts = args.gradient_accumulation_steps * args.world_size
            part = batch % self.batches % parts
            start, end = (len(memory) * n // parts for n in (part, part + 1))
        else:
            start, end = (int(self.ratio * full_size * n) for n in (batch, batch + 1))
        return start, round((end - start) * size / full_size)

    def _by_row(
        self, memory: Memory, args: TrainingArguments, batch: int, size: int
    ) -> list[dict[str, Any]]:
        """The old rows of a micro-batch, if fractions carry over from new row to new row."""
        epoch, place = divmod(batch, self.batches)
        first = epoch * sum(self.sizes) + sum(self.sizes[:place])
        each = min(Fraction(self.ratio), Fraction(len(memory), rows_of_a_step(args)))
        start, end = (math.ceil(each * new) for new in (first, first + size))
        return memory.draw(start, end - start, decay=self.decay, max_repeats=self.max_repeats)
