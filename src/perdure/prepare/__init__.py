"""Turning settings into one checked plan, for `run`, `learn`, their dry runs and `compare`.

    settings.py    checks of the settings that need neither a base nor rows
    fitting.py     settings that depend on the base, and whether settings and tokens fit it
    rows.py        checks of the tasks' rows, with notes and warnings about them
    dev.py         which dev rows are measured, and whether there are those that the settings need
    merged.py      the two lineages of a run whose stages are merged
    plan.py        the plan: the objects that are made from the settings once

Nothing is written, and no weights are read.
"""

from collections.abc import Sequence
from pathlib import Path

from perdure import processes
from perdure.config import TOGETHER, Config
from perdure.data.stream import load_stream, stages_of
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import BaseLoader
from perdure.models.base import BaseInfo, read_base
from perdure.models.pins import check_pin, pin
from perdure.prepare.dev import check_dev_rows, with_dev_rows
from perdure.prepare.fitting import check_gate_fits, fit, guard_tasks
from perdure.prepare.plan import Plan
from perdure.prepare.rows import check_adopted, check_general, check_tasks
from perdure.prepare.settings import check_settings, check_sharded


__all__ = [
    "Plan",
    "check_general",
    "check_learned_rows",
    "check_tasks",
    "prepare",
    "prepare_adopt",
    "prepare_learn",
    "prepare_run",
]


def prepare(config: Config, info: BaseInfo | None = None) -> Plan:
    """Check settings, and fill in those that depend on the base: lengths and adapter targets.

    `info` is the result of `read_base` for the base, if there is one already.

    Raises:
        PerdureError: a setting is wrong, there is no such base, it has fewer positions or tokens
            than the settings or the tokenizer need, a method cannot work with these settings, or
            one of lm-eval's tasks cannot be run.
    """
    methods, arguments = check_settings(config)
    info = info or read_base(config.base, config.revision)
    fit(config, info)
    check_gate_fits(config, info.kind)
    for method in methods:
        method.check(config, info.kind)
    if processes.shard_weights():
        check_sharded(config, methods, info.kind)
    made_arguments = [(config.training, config.checkpoint_every, arguments)]
    tasks = guard_tasks(config, info)
    return Plan(config, info, methods, made_arguments, loader=BaseLoader(info), lm_eval=tasks)


def prepare_run(config: Config, info: BaseInfo | None = None) -> Plan:
    """Return the plan of a run with all its tasks. The tasks not yet learned have been checked.

    `info` is as for `prepare`.

    Raises:
        PerdureError: as for `prepare`, the base cannot learn the rows, or settings or rows differ
            from those of the existing lineage.
    """
    path = Path(config.lineage or "new-lineage")
    lineage = Lineage(path) if (path / "lineage.yaml").exists() else None
    if lineage:
        config.threads = config.threads or lineage.config.threads
        if config.base == lineage.config.base:
            config.revision = config.revision or lineage.config.revision
    else:
        Lineage.check_vacant(path)
    plan = prepare(config, info)
    plan.tasks = [with_dev_rows(config, task) for task in load_stream(config)]
    if lineage:
        lineage.check_unchanged(config, pin(config.base, config.revision))
        check_learned_rows(lineage, plan.tasks)
    new_tasks = plan.tasks[len(lineage.stages) if lineage else 0 :]
    check_dev_rows(config, new_tasks)
    plan.notes = check_tasks(plan, new_tasks)
    return plan


def prepare_learn(lineage: Lineage, task: Task) -> Plan:
    """Return the plan of one more task, which has been checked.

    Raises:
        PerdureError: as for `prepare`, the base has changed, or it cannot learn the rows.
    """
    if lineage.config.mode in TOGETHER:
        raise PerdureError(
            f"{lineage.path}: mode {lineage.config.mode} learns a whole stream; list its tasks in "
            "a YAML for `perdure run`"
        )
    check_pin(lineage.pin)
    plan = prepare(lineage.config)
    plan.tasks = [with_dev_rows(lineage.config, task)]
    check_dev_rows(lineage.config, plan.tasks)
    plan.notes = check_tasks(plan, plan.tasks)
    return plan


def prepare_adopt(lineage: Lineage, task: Task, merges: bool = False) -> Plan:
    """Return the plan of one more task that was learned elsewhere, which has been checked.

    Args:
        lineage: the lineage.
        task: the task.
        merges: whether what was learned elsewhere is merged, which encoders can as well.

    Raises:
        PerdureError: as for `prepare`, the base has changed, or the task cannot be scored.
    """
    if lineage.config.mode != "sequential":
        raise PerdureError(
            f"{lineage.path}: a checkpoint that was trained elsewhere follows the stage before, "
            f"and in mode {lineage.config.mode} no stage does; use a lineage of mode sequential"
        )
    check_pin(lineage.pin)
    plan = prepare(lineage.config)
    if plan.info.kind == "encoder" and not merges:
        raise PerdureError(
            f"{lineage.path}: its base is an encoder, whose stages have a head of Perdure's own; "
            "only models that generate can adopt a checkpoint"
        )
    plan.tasks = [task]
    plan.notes = check_adopted(plan, task)
    return plan


def check_learned_rows(lineage: Lineage, tasks: Sequence[Task]) -> None:
    """Check that the stages of a lineage have learned the same rows as the stream has now.

    Raises:
        PerdureError: the rows of a task differ; the line names the task.
    """
    for entry, learned in zip(lineage.stages, stages_of(tasks, lineage.config.mode), strict=False):
        descriptions = learned_by(entry)
        for description, task in zip(descriptions, learned[-len(descriptions) :], strict=False):
            for split, rows in (("train", task.train), ("dev", task.dev)):
                stored = description.get(split)
                if stored and stored["sha256"] != (rows.sha256 if rows else None):
                    other = "other rows" if split == "train" else "with other dev rows"
                    raise PerdureError(
                        f"{lineage.path}: stage {entry['stage']} learned {other} of {task.name!r}; "
                        "restore the rows or give a new folder with lineage=FOLDER"
                    )
