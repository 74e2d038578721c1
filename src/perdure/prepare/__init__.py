"""Settings to one checked plan, which `run`, `learn`, their dry runs and `compare` take.

    settings.py    what can be known of the settings without a base and without rows
    fitting.py     what the base decides, and whether settings and tokens fit it
    rows.py        whether the rows of tasks fit, and what is to be said of them
    plan.py        the plan: what is made of the settings once

Nothing is written here, and no weights are read.
"""

from collections.abc import Sequence
from pathlib import Path

from perdure.config import TOGETHER, Config
from perdure.data.stream import load_stream, stages_of
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import BaseLoader
from perdure.models.base import BaseInfo, read_base
from perdure.models.pins import check_pin, pin
from perdure.prepare.fitting import fit
from perdure.prepare.plan import Plan
from perdure.prepare.rows import check_general, check_tasks
from perdure.prepare.settings import check_settings


__all__ = [
    "Plan",
    "check_general",
    "check_learned_rows",
    "check_tasks",
    "prepare",
    "prepare_learn",
    "prepare_run",
]


def prepare(config: Config, info: BaseInfo | None = None) -> Plan:
    """Check settings and fill in what the base decides: lengths left to it, an adapter's targets.

    `info` is what was read of the base before, if it was.

    Raises:
        PerdureError: a setting is wrong, there is no such base, it has fewer positions or tokens
            than the settings or the tokenizer say, or a method cannot work under these settings.
    """
    methods, arguments = check_settings(config)
    info = info or read_base(config.base, config.revision)
    fit(config, info)
    for method in methods:
        method.check(config, info.kind)
    made = [(config.training, config.checkpoint_every, arguments)]
    return Plan(config, info, methods, made, BaseLoader(info))


def prepare_run(config: Config, info: BaseInfo | None = None) -> Plan:
    """The plan of a run: of all its tasks, and checked for those that are not learned yet.

    `info` is as for `prepare`.

    Raises:
        PerdureError: as `prepare`, rows that the base cannot take, or other settings or rows than
            those of the lineage that is there already.
    """
    path = Path(config.lineage or "new-lineage")
    lineage = Lineage(path) if (path / "lineage.yaml").exists() else None
    if lineage:
        config.threads = config.threads or lineage.config.threads
        if config.base == lineage.config.base:
            config.revision = config.revision or lineage.config.revision
    plan = prepare(config, info)
    plan.tasks = load_stream(config)
    if lineage:
        lineage.check_unchanged(config, pin(config.base, config.revision))
        check_learned_rows(lineage, plan.tasks)
    else:
        Lineage.check_vacant(path)
    plan.notes = check_tasks(plan, plan.tasks[len(lineage.stages) if lineage else 0 :])
    return plan


def prepare_learn(lineage: Lineage, task: Task) -> Plan:
    """The plan of one more task.

    Raises:
        PerdureError: as `prepare`, another base than the lineage's, or rows that it cannot take.
    """
    if lineage.config.mode in TOGETHER:
        raise PerdureError(
            f"{lineage.path}: mode {lineage.config.mode} learns a whole stream; list its tasks in "
            "a YAML for `perdure run`"
        )
    check_pin(lineage.pin)
    plan = prepare(lineage.config)
    plan.tasks = [task]
    plan.notes = check_tasks(plan, plan.tasks)
    return plan


def check_learned_rows(lineage: Lineage, tasks: Sequence[Task]) -> None:
    """Check that the stages of a lineage have learned just these rows of a stream.

    Raises:
        PerdureError: with the task whose rows are others.
    """
    for entry, learned in zip(lineage.stages, stages_of(tasks, lineage.config.mode), strict=False):
        described = learned_by(entry)
        for one, task in zip(described, learned[-len(described) :], strict=False):
            if one["train"]["sha256"] != task.train.sha256:
                raise PerdureError(
                    f"{lineage.path}: stage {entry['stage']} learned other rows of {task.name!r} "
                    "than these; take the rows back or give a new folder with lineage=FOLDER"
                )
