"""Experience replay: remembered rows in every batch."""

from typing import Any, ClassVar

from perdure.errors import PerdureError
from perdure.methods.shared.rehearsal_ratio import RehearsalRatio
from perdure.train.method import Family, Keeps, Method


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
        ratio: the number of remembered rows for each new row, >= 0; fractions carry over from one
            full batch to the next. A batch that is not full has its share, rounded, but in a task
            whose batches would all have none, fractions carry over from row to row.
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
        self.schedule = RehearsalRatio(ratio, decay=decay, max_repeats=max_repeats)

    def why_not_sharded(self) -> str | None:
        return None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.schedule.begin(args, train_dataloader, state.max_steps)

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        return self.schedule.draw(self.context.memory, self.engine.args, batch=batch, size=size)
