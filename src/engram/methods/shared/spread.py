"""Old rows beside the new ones of an epoch: how many each micro-batch takes, and which."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import TrainingArguments

from engram.seeds import derive
from engram.train.memory import Memory


class Spread:
    """Old rows, so many an epoch, spread evenly over its new ones.

    Beside the first n of N new rows stand floor(n M / N) of the M old ones. So a step has the same
    old rows however it is cut into micro-batches or shared by processes, micro-batches of one size
    differ by at most one, and the epoch ends with the last old row. Each epoch has an order of its
    own, in which no row comes again before all have come. A draw depends on (seed, micro-batch)
    only: a run that stopped finds its place again.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], seed: int, args: TrainingArguments, loader: Any
    ):
        self.rows, self.seed = list(rows), seed
        self.size = args.train_batch_size
        self.batches = len(loader) * args.world_size
        # the last rows may be dropped, or, with several processes, followed by the first ones again
        self.new = min(len(loader.dataset), self.batches * self.size)
        self._order = lru_cache(maxsize=2)(self._of_epoch)

    def epoch(self, batch: int) -> int:
        """The epoch, from 0, of a micro-batch, counted as `Method.rehearse` counts them."""
        return batch // self.batches

    def draw(self, batch: int, old: int) -> list[dict[str, Any]]:
        """What a micro-batch takes, of `old` rows in its epoch."""
        if not self.rows:
            return []
        before = batch % self.batches * self.size
        start, end = (min(n, self.new) * old // self.new for n in (before, before + self.size))
        return self._order(self.epoch(batch)).draw(start, end - start)

    def _of_epoch(self, epoch: int) -> Memory:
        return Memory({"old": self.rows}, derive(self.seed, "epoch", epoch))
