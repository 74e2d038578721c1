"""Whether the dev rows of a task are measured while it is learned, and whether they can be."""

from collections.abc import Sequence
from dataclasses import replace

from perdure.config import Config
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.train.dev_settings import for_task, key_that_needs_rows, strategy


def with_dev_rows(config: Config, task: Task) -> Task:
    """Return the task with its dev rows if they are measured, else without them.

    They are unless `eval_strategy` is `no`. Those that come with a benchmark are measured only if
    the settings ask for it.
    """
    if task.dev is None:
        return task
    training = for_task(config.training, task.training)
    of_benchmark = "benchmark" in (task.dev.source or {})
    if strategy(training) == "no" or (of_benchmark and not key_that_needs_rows(training)):
        return replace(task, dev=None)
    return task


def check_dev_rows(config: Config, tasks: Sequence[Task]) -> None:
    """Check that tasks have the dev rows that the settings need.

    That `eval_strategy: no` contradicts some settings is found where these are checked.

    Raises:
        PerdureError: one has none; the line names the task and the setting.
    """
    for task in tasks:
        training = for_task(config.training, task.training)
        key = key_that_needs_rows(training)
        if key and strategy(training) != "no" and (task.dev is None or not task.dev.rows):
            raise PerdureError(
                f"task {task.name!r}: training: {key} needs dev rows, and the task has none; give "
                "it dev rows (--dev, or `dev:` in a YAML), or leave the setting out"
            )
