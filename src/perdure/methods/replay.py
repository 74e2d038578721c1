"""Experience replay: remembered rows in every batch."""

from typing import Any, ClassVar

from perdure.errors import PerdureError
from perdure.train.method import Family, Keeps, Method
from perdure.train.step import rows_of_a_step


class Replay(Method):
    """Adds remembered rows to every batch, `ratio` for each new row.

        loss = (sum over new and remembered tokens of cross-entropy) / (number of both)

    This is experience replay (Robins 1995, Chaudhry et al. 2019). The rows are drawn from the old
    tasks in turn, without replacement until a task's rows are exhausted. If a step needs more rows
    than the memory has, it gets each row once. The collator adds them, so the number of steps and
    the schedule are those of `sequential`. The default, one remembered row for two new ones, uses
    as many remembered rows as the outer steps of Recurrent-KIF do by default (4 steps after every
    8), so that both have the same budget.

    With a `decay`, an old task of age a is drawn in proportion to a^-decay, as people encounter
    things again (Gandhi et al. 2024, 2401.10393). The newest old task has age 1, each earlier one
    is older by one, and `general:` rows count as the oldest. In the paper, as far as we recall, the
    new task itself has age 1.

    A few rows that are repeated many times can cost a model much of its capacity (Hernandez et al.
    2022, 2205.10487, for pre-training). With `max_repeats`, a row that was drawn that often in a
    task is left out from then on. Its place in the batch stays empty, so that rows of other tasks
    are not drawn more often instead. When all rows have reached the limit, batches have no old
    rows. The numbers of the draws determine which of them are left out, so a resumed run needs no
    stored state. Draws that a batch skips because it is not full count as well: if a task is
    shorter than a batch, its rows are rehearsed less often than the limit allows. `perdure show`
    prints how often rows were rehearsed.

    State: none beyond the memory. Old rows: needed.

    Args:
        ratio: the number of remembered rows for each new row, >= 0; fractions carry over from batch
            to batch.
        decay: the exponent of the power law, >= 0; with 0 all old tasks are drawn equally often.
        max_repeats: how often a remembered row is rehearsed in one task at most, >= 1; null for no
            limit.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/1902.10486"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"ratio": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.7, second_loss=0.3)

    def __init__(self, ratio: float = 0.5, decay: float = 0.0, max_repeats: int | None = None):
        if ratio < 0:
            raise PerdureError(
                f"replay: ratio must be >= 0, got {ratio}; 0.5 is one row for two new ones"
            )
        if decay < 0:
            raise PerdureError(f"replay: decay must be >= 0, got {decay}; 0 treats all tasks alike")
        if max_repeats is not None and max_repeats < 1:
            raise PerdureError(
                f"replay: max_repeats must be >= 1, got {max_repeats}; null sets no limit"
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
        full_size = args.per_device_train_batch_size
        start, end = (int(self.ratio * full_size * n) for n in (batch, batch + 1))
        count = round((end - start) * size / full_size)
        return memory.draw(start, count, decay=self.decay, max_repeats=self.max_repeats)

    def _part_of_all(self, batch: int, size: int) -> list[dict[str, Any]]:
        """The old rows of a micro-batch in a step that has each remembered row once."""
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
