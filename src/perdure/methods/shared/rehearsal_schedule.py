"""Which old rows are in each micro-batch, if a number of them is learned in every epoch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import TrainingArguments

from perdure.seeds import derive
from perdure.train.memory import Memory


class RehearsalSchedule:
    """Spreads a number of old rows evenly over the new rows of an epoch.

    Of M old rows, floor(n M / N) are learned with the first n of N new rows. So an optimizer step
    has the same old rows however it is divided into micro-batches and processes, the numbers of old
    rows in full micro-batches differ by at most one, and the last old row is in the last
    micro-batch of the epoch. Each epoch has its own order, in which no row is repeated before all
    rows were drawn. A draw depends only on (seed, micro-batch), so a resumed run needs no stored
    state.

    Args:
        rows: the old rows to draw from, as features.
        seed: the seed of the orders.
        args: the training's arguments; every process makes the same schedule.
        loader: the training's DataLoader.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], seed: int, args: TrainingArguments, loader: Any
    ):
        self.rows, self.seed = list(rows), seed
        self.size = args.train_batch_size  # new rows of a full micro-batch
        self.batches = len(loader) * args.world_size  # micro-batches of an epoch
        # The DataLoader may drop the last rows; several processes may see the first ones again.
        self.new = min(len(loader.dataset), self.batches * self.size)
        self._order = lru_cache(maxsize=2)(self._order_of_epoch)

    def epoch(self, batch: int) -> int:
        """The epoch, from 0, of a micro-batch, numbered as in `Method.rehearse`."""
        return batch // self.batches

    def draw(self, batch: int, count: int) -> list[dict[str, Any]]:
        """The old rows of one micro-batch, if its epoch has `count` old rows in all."""
        if not self.rows:
            return []
        first_new = batch % self.batches * self.size
        start, end = (
            min(n, self.new) * count // self.new for n in (first_new, first_new + self.size)
        )
        return self._order(self.epoch(batch)).draw(start, end - start)

    def _order_of_epoch(self, epoch: int) -> Memory:
        return Memory({"old": self.rows}, derive(self.seed, "epoch", epoch))
