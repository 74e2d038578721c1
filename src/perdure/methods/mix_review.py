"""Mix-review."""

from typing import Any, ClassVar

from perdure.errors import PerdureError
from perdure.methods.shared.rehearsal_schedule import RehearsalSchedule
from perdure.train.method import Family, Keeps, Method


class MixReview(Method):
    """Adds old rows to every epoch, fewer from epoch to epoch.

        rows of epoch e = |D| + int(mix |D| decay^e),   e = 0, 1, ...

    with D the new task (He et al. 2019, 1910.07117; used by CKL, 2110.03215). The old rows are
    drawn uniformly from all remembered rows, again for each epoch and without replacement. The
    authors draw from the whole pre-training corpus, with `mix` 4. A memory is smaller, and when it
    is exhausted its rows are repeated: with `memory.ratio` 0.02, tasks of equal size and `mix` 1,
    each row is drawn 50 times in the first epoch of the second task. Keep more rows, or lower
    `mix`. In CKL's published code the decay seems to have no effect, because the mixed data of
    later epochs is not loaded again; `decay` 1 reproduces that.

    In the paper the old rows make an epoch longer. Here they are added evenly to the micro-batches,
    so the number of steps and the schedule are those of `sequential`; with `mix` 4 a micro-batch is
    five times as large and needs accordingly more memory.

    State: none beyond the memory. Old rows: needed. Cost: that of the added rows.

    Args:
        mix: the number of old rows for each new row in the first epoch, >= 0.
        decay: the factor on `mix` from epoch to epoch, 0 to 1.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/1910.07117"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"mix": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.7, second_loss=0.3)

    def __init__(self, mix: float = 1.0, decay: float = 0.7):
        if mix < 0 or not 0 <= decay <= 1:
            raise PerdureError(
                f"mix_review: needs mix >= 0 and 0 <= decay <= 1, got {mix} and {decay}"
            )
        self.mix, self.decay = mix, decay

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        rows = [row for task in self.context.memory.tasks.values() for row in task]
        self.schedule = RehearsalSchedule(rows, self.context.seed, args, train_dataloader)

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        epoch = self.schedule.epoch(batch)
        count = int(self.mix * self.schedule.new * self.decay**epoch)
        return self.schedule.draw(batch, count)
