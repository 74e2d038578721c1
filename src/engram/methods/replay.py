"""Experience replay: remembered rows in every batch."""

from typing import Any, ClassVar

from engram.errors import EngramError
from engram.train.method import Family, Method
from engram.train.step import rows_of_a_step


class Replay(Method):
    """Adds `ratio` remembered rows for each new row to every batch (Robins 1995, Chaudhry 2019).

    loss = (sum over new and remembered tokens of cross-entropy) / (number of both)

    The rows come from the memory in turns over the old tasks, without replacement until exhausted.
    Where a step asks for more of them than the memory has, it has each row once, of whatever age.
    They are added by the collator, so the number of steps and the schedule are those of
    `sequential`. The default, one remembered row for two new ones, passes as many memory rows as
    Recurrent-KIF's outer steps do with their defaults (4 steps after every 8): matched compute.

    With a `decay` an old task of age a is drawn in proportion to a^-decay, as people meet things
    again (Gandhi et al. 2024, 2401.10393), age 1 for the newest old task and one more for each
    before it; `general:` rows count as the oldest. In the paper, as recalled, age 1 is that of the
    new task itself.

    A few rows that are repeated many times can cost a model much of its capacity (Hernandez et al.
    2022, 2205.10487, of pre-training). With `max_repeats` a row that has come so often in a task is
    left out from then on, and its place in the batch stays empty: the rows of other tasks do not
    come more often for it. Once all rows have had their share, batches go without old rows. Which
    draws fall away follows from their numbers, so a run that stopped needs no further state. A
    batch that is not full skips draws, and these count as well: of a task shorter than a batch the
    rows come less often than they may. `engram show` says how often they came.

    State: none beyond the memory. Old rows: needed.

    Args:
        ratio: remembered rows per new row, >= 0; fractions are carried over from batch to batch.
        decay: exponent of the power law, >= 0; 0 draws from all old tasks alike.
        max_repeats: how often a remembered row is rehearsed in one task at most, >= 1; null is
            without a limit.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/1902.10486"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"ratio": 0.0}

    def __init__(self, ratio: float = 0.5, decay: float = 0.0, max_repeats: int | None = None):
        if ratio < 0:
            raise EngramError(
                f"replay: ratio must be >= 0, got {ratio}; 0.5 is one row for two new ones"
            )
        if decay < 0:
            raise EngramError(f"replay: decay must be >= 0, got {decay}; 0 treats all tasks alike")
        if max_repeats is not None and max_repeats < 1:
            raise EngramError(
                f"replay: max_repeats must be >= 1, got {max_repeats}; null is without a limit"
            )
        self.ratio, self.decay, self.max_repeats = ratio, decay, max_repeats

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = len(train_dataloader)  # type: ignore[arg-type]
        self.batches = batches * args.world_size  # micro-batches of an epoch

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        memory, args = self.context.memory, self.engine.args
        if not memory:
            return []
        if self.ratio * rows_of_a_step(args) > len(memory):
            return self._part_of_all(batch, size)
        full = args.per_device_train_batch_size
        start, end = (int(self.ratio * full * n) for n in (batch, batch + 1))
        count = round((end - start) * size / full)
        return memory.draw(start, count, self.decay, self.max_repeats)

    def _part_of_all(self, batch: int, size: int) -> list[dict[str, Any]]:
        """What a micro-batch takes of all remembered rows, which its step shares out."""
        memory, args = self.context.memory, self.engine.args
        parts = args.gradient_accumulation_steps * args.world_size  # micro-batches of a step
        epoch, place = divmod(batch, self.batches)
        step, part = divmod(place, parts)
        step += epoch * -(-self.batches // parts)
        if self.max_repeats is not None and step >= self.max_repeats:
            return []
        start, end = (len(memory) * n // parts for n in (part, part + 1))
        count = round((end - start) * size / args.per_device_train_batch_size)
        return memory.whole(step)[start : start + count]
