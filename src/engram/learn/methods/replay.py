"""Experience replay: remembered rows in every batch."""

from typing import Any, ClassVar

from engram.errors import EngramError
from engram.learn.methods.base import Family, Method


class Replay(Method):
    """Adds `ratio` remembered rows for each new row to every batch (Robins 1995, Chaudhry 2019).

    loss = (sum over new and remembered tokens of cross-entropy) / (number of both)

    The rows come from the memory in turns over the old tasks, without replacement until exhausted.
    They are added by the collator, so the number of steps and the schedule are those of
    `sequential`. The default, one remembered row for two new ones, passes as many memory rows as
    Recurrent-KIF's outer steps do with their defaults (4 steps after every 8): matched compute.

    State: none beyond the memory. Old rows: needed.

    Args:
        ratio: remembered rows per new row, >= 0; fractions are carried over from batch to batch.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/1902.10486"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"ratio": 0.0}

    def __init__(self, ratio: float = 0.5):
        if ratio < 0:
            raise EngramError(
                f"replay: ratio must be >= 0, got {ratio}; 0.5 is one row for two new ones"
            )
        self.ratio = ratio

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        if not self.context.memory:
            return []
        full = self.engine.args.per_device_train_batch_size
        start, end = (int(self.ratio * full * n) for n in (batch, batch + 1))
        return self.context.memory.draw(start, round((end - start) * size / full))
