"""Dual-stage mixed fine-tuning."""

from typing import Any, ClassVar

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.rehearsal_schedule import RehearsalSchedule
from perdure.methods.shared.shares import floor_share
from perdure.seeds import derive
from perdure.train.method import Family, Keeps, Method, TaskContext


class DMT(Method):
    """Learns each remembered row once in every epoch, together with the new rows.

        rows of an epoch = new rows + floor(share * remembered rows)

    This is the second stage of Dong et al. 2023 (2310.05492): after the special abilities, general
    data is learned with a fraction k of the special data mixed in. Here k is `memory.ratio` times
    `share`. The paper tries fractions down to 1/256, and accounts differ on which one was best, so
    none of them is the default. With a share below 1, the rows are drawn once in a task, from each
    old task in proportion to its rows; they are the same in every epoch, in a different order.
    `replay` adds a number of old rows for each new one; here the size of the memory decides, so a
    short task rehearses as much as a long one.

    In the paper the old rows make an epoch longer. Here they are added evenly to the micro-batches,
    so the number of steps and the schedule are those of `sequential`.

    State: none beyond the memory. Old rows: needed. Cost: that of the added rows.

    Args:
        share: the share of the remembered rows that is learned, 0 to 1.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2310.05492"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"share": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.6, second_loss=0.3)

    def __init__(self, share: float = 1.0):
        if not 0 <= share <= 1:
            raise PerdureError(f"dmt: needs 0 <= share <= 1, got {share}; memory.ratio keeps more")
        self.share = share

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        count = floor_share(self.share, len(context.memory))
        self.rows = context.memory.sample(count, derive(context.seed, "share"))
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        seed = self.context.seed
        self.schedule = RehearsalSchedule(self.rows, seed, args, train_dataloader)

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        return self.schedule.draw(batch, len(self.rows))
