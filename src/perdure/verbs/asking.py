"""How a stage is asked: as it is scored, and in the chat template or as plain text."""

from contextlib import ExitStack
from typing import Any

from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import as_stored
from perdure.methods import make
from perdure.models.base import Base
from perdure.train.stage import scoring_context


def as_scored(lineage: Lineage, entry: dict[str, Any] | None, base: Base) -> ExitStack:
    """Return a context in which the model answers as it does when the stage is scored.

    It is inside the contexts of the methods that the stage was learned with, and in the precision
    of its training. Stage 0 is the base without a fresh adapter, whichever stage's adapter the
    model has.

    Args:
        lineage: the lineage.
        entry: the ledger's line of the stage; None for stage 0.
        base: the model with the stage's weights. It is also stage 0 if `is_untouched`.
    """
    config = lineage.config_at(entry)
    stack = scoring_context(base, config, make(config.method))
    stack.enter_context(as_stored(lineage, entry, base))
    return stack


def learned_in_template(lineage: Lineage, stage: int) -> bool | None:
    """Return whether a stage has learned rows in the chat template; None if it has learned nothing.

    For the base, the tasks of the active stages are asked about, so that it can be compared with
    them.
    """
    entries = lineage.line(stage) if stage else lineage.standing
    tasks = [task for entry in entries for task in learned_by(entry)]
    return any(task.get("chat", False) for task in tasks) if tasks else None
