"""Which old rows are in each micro-batch, if there is a fixed number of them for each new row."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from perdure.train.memory import Memory
from perdure.train.step import rows_of_a_step


@dataclass
class RehearsalRatio:
    """Draws `ratio` old rows for each new row of a micro-batch.

    If an optimizer step needs more rows than the memory has, it gets each row once. A draw depends
    only on the number of the micro-batch, so a resumed run needs no stored state.

    Args:
        ratio: the number of old rows for each new row, >= 0; fractions carry over from micro-batch
            to micro-batch.
        decay: as for `Memory.draw`.
        max_repeats: how often a row is drawn in one task at most; None for no limit.
    """

    ratio: float
    decay: float = 0.0
    max_repeats: int | None = None

    def begin(self, args: TrainingArguments, loader: Any) -> None:
        """Prepare for a task with this DataLoader."""
        self.batches = len(loader) * args.world_size  # micro-batches of an epoch

    def draw(
        self, memory: Memory, args: TrainingArguments, batch: int, size: int
    ) -> list[dict[str, Any]]:
        """The old rows of a micro-batch, with the arguments of `Method.rehearse`."""
        if not memory:
            return []
        if self.ratio * rows_of_a_step(args) > len(memory):
            return self._part_of_all(memory, args, batch=batch, size=size)
        full_size = args.per_device_train_batch_size
        start, end = (int(self.ratio * full_size * n) for n in (batch, batch + 1))
        count = round((end - start) * size / full_size)
        return memory.draw(start, count, decay=self.decay, max_repeats=self.max_repeats)

    def _part_of_all(
        self, memory: Memory, args: TrainingArguments, batch: int, size: int
    ) -> list[dict[str, Any]]:
        """The old rows of a micro-batch in a step that has each old row once."""
        parts = args.gradient_accumulation_steps * args.world_size  # micro-batches of a step
        epoch, place = divmod(batch, self.batches)
        step, part = divmod(place, parts)
        step += epoch * -(-self.batches // parts)
        if self.max_repeats is not None and step >= self.max_repeats:
            return []
        start, end = (len(memory) * n // parts for n in (part, part + 1))
        count = round((end - start) * size / args.per_device_train_batch_size)
        return memory.whole(step)[start : start + count]
