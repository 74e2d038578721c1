"""Whether the rows of tasks can be learned and scored, before anything is trained or written."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from engram.config import DEFAULT_TRAINING, TOGETHER
from engram.data.checks import check_task, truncated, warnings
from engram.data.remarks import remarks
from engram.data.rows import Row, answered
from engram.data.stream import file_split
from engram.data.task import Task
from engram.data.tokens import encode
from engram.data.unwritten import unwritten
from engram.errors import EngramError
from engram.measure.evaluate import scoring_mode
from engram.measure.metrics import find_metric
from engram.models.base import check_quantization
from engram.models.layout import GENERAL
from engram.prepare.fitting import check_prompts_known, known_features
from engram.prepare.plan import Plan
from engram.prepare.settings import check_one_process


def check_tasks(plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Check that the base can learn every row and that the tasks can be scored.

    Returns what is to be said before they are learned, a line each: what was left out of the files,
    and what is probably a mistake.

    Raises:
        EngramError: with the task, and the row that does not fit.
    """
    check_one_process()
    for task in tasks:
        check_task(task)
        if task.name == GENERAL:
            raise EngramError(
                f"task {task.name!r}: that is what the general rows are called; rename it"
            )
    config, kind, tokenizer = plan.config, plan.info.kind, plan.info.tokenizer
    tokens = plan.info.limits.tokens
    check_quantization(config.quantization, config.adapter, kind)
    make_features = _make_features(plan)
    notes = check_general(plan)
    lines = warnings(tasks)
    for task in tasks:
        _check_training(plan, task)
        if not task.train.rows:
            raise EngramError(f"task {task.name!r} has no training rows; give at least one")
        answers, labels = task.answers(), None
        if kind == "encoder":
            labels = list(answers or ())
        where = f"{task.name} train"
        _, cut = make_features(task.train.rows, labels=labels, where=where)
        lines += remarks(task.train.rows, tokenizer, kind, where)
        lines += unwritten(task.train.rows, tokenizer, where)
        if cut:
            long = _long(plan, task.train.rows)
            lines += truncated(task.train, where, long, config.max_length)
        find_metric(task.metric)
        for split in filter(None, (task.train, task.dev, task.test)):
            notes += split.notes
        if task.test is None:
            continue
        check_prompts_known(tokens, task.test.rows, tokenizer, task.name)
        mode = scoring_mode(kind, task, config.scoring.mode)
        where = f"{task.name} test"
        # As `predict` asks them: with a stand-in for the answer, which the model is not shown.
        questions = [answered(row, ".") for row in task.test.rows]
        _, cut = make_features(questions, labels=["."], where=where)
        if cut:
            long = _long(plan, questions)
            lines += truncated(task.test, where, long, config.max_length)
        if mode == "options" and kind != "encoder":
            options = [{"prompt": "?", "completion": option} for option in answers or ()]
            make_features(options, labels=None, where=f"{task.name} options")
    return [*dict.fromkeys(notes), *(f"warning: {line}" for line in lines)]


def _long(plan: Plan, rows: Sequence[Row]) -> list[int]:
    """The rows, by index, whose prompt is cut."""
    tokenizer, kind = plan.info.tokenizer, plan.info.kind
    lengths = (plan.config.max_length, plan.config.max_completion_length)
    return [i for i, row in enumerate(rows) if encode(row, tokenizer, kind, *lengths).truncated]


def check_general(plan: Plan) -> list[str]:
    """Check that the rows of general use are there, fit, and have a method that looks at them.

    Returns what is to be said of how they were read.

    Raises:
        EngramError: with what is wrong with the file, or the setting to change.
    """
    general = plan.config.general
    if general.file is None:
        return []
    if not any(method.rehearses for method in plan.methods):
        raise EngramError(
            f"general: no method of {plan.config.method!r} rehearses rows; take replay or "
            "recurrent_kif"
        )
    if plan.info.kind == "encoder":
        raise EngramError(
            "general: an encoder learns only the labels of its tasks; leave general out"
        )
    split = file_split(general.file, None, plan.config.seed)
    _make_features(plan)(split.rows, labels=None, where="general")
    return list(split.notes)


def _make_features(plan: Plan) -> Callable[..., Any]:
    """`features` under the settings, of which the base knows every token."""
    return partial(
        known_features,
        plan.info.limits.tokens,
        tokenizer=plan.info.tokenizer,
        kind=plan.info.kind,
        max_length=plan.config.max_length,
        max_completion_length=plan.config.max_completion_length,
        mask_history=plan.config.mask_history,
    )


def _check_training(plan: Plan, task: Task) -> None:
    config = plan.config
    training = {**DEFAULT_TRAINING, **config.training, **task.training}
    batch, count = training["per_device_train_batch_size"], len(task.train.rows)
    if training.get("dataloader_drop_last") and count < batch:
        raise EngramError(
            f"task {task.name!r}: training.dataloader_drop_last drops all of its {count} rows, "
            f"fewer than a batch of {batch}; leave it out"
        )
    if not task.training:
        return
    if config.mode in TOGETHER:
        raise EngramError(
            f"task {task.name!r}: mode {config.mode} learns all tasks at once, so none has a "
            "training: of its own; leave it out"
        )
    for key in ("report_to", "run_name", "project"):
        if key in task.training:
            raise EngramError(
                f"task {task.name!r}: training: {key} is the whole run's; set it there"
            )
    try:
        plan.arguments({**config.training, **task.training})
    except EngramError as error:
        raise EngramError(f"task {task.name!r}: {error}") from error
