"""Whether the rows of tasks can be learned and scored, before anything is trained or written."""

from collections.abc import Sequence

from perdure.config import DEFAULT_TRAINING, TOGETHER
from perdure.data.checks import check_task, truncated, warnings
from perdure.data.remarks import remarks
from perdure.data.rows import Row, answered
from perdure.data.stream import file_split
from perdure.data.task import Split, Task
from perdure.data.tokens import check_known, encode_all, features, prompts
from perdure.data.unwritten import unwritten
from perdure.errors import PerdureError
from perdure.measure.evaluate import scoring_mode
from perdure.measure.metrics import find_metric
from perdure.measure.predict import room_for_prompt
from perdure.models.base import check_quantization
from perdure.models.layout import GENERAL
from perdure.models.token_cache import Tokens
from perdure.prepare.fitting import check_prompts_known
from perdure.prepare.plan import Plan
from perdure.prepare.settings import check_one_process


def check_tasks(plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Check that the base can learn every row and that the tasks can be scored.

    Returns what is to be said before they are learned, a line each: what was left out of the files,
    and what is probably a mistake.

    Raises:
        PerdureError: with the task, and the row that does not fit.
    """
    check_one_process()
    for task in tasks:
        check_task(task)
        if task.name == GENERAL:
            raise PerdureError(
                f"task {task.name!r}: that is what the general rows are called; rename it"
            )
    check_quantization(plan.config.quantization, plan.config.adapter, plan.info.kind)
    notes, lines = check_general(plan), warnings(tasks)
    for task in tasks:
        _check_training(plan, task)
        if not task.train.rows:
            raise PerdureError(f"task {task.name!r} has no training rows; give at least one")
        lines += _check_train(plan, task)
        find_metric(task.metric)
        for split in filter(None, (task.train, task.dev, task.test)):
            notes += split.notes
        if task.test is not None:
            lines += _check_test(plan, task, task.test)
    return [*dict.fromkeys(notes), *(f"warning: {line}" for line in lines)]


def _check_train(plan: Plan, task: Task) -> list[str]:
    """Make the features of a task's train rows; what is to be said of them."""
    tokenizer, rows, where = plan.info.tokenizer, task.train.rows, f"{task.name} train"
    encoded_rows = _make_features(plan, rows, where, list(task.answers() or ()))
    return [
        *remarks(rows, encoded_rows, tokenizer, plan.info.kind, where),
        *unwritten(rows, tokenizer, where),
        *truncated(task.train, where, _cut(encoded_rows), plan.config.max_length),
    ]


def _check_test(plan: Plan, task: Task, test: Split) -> list[str]:
    """Make the prompts of a task's test rows as `predict` does; what is to be said of them."""
    config, info, where = plan.config, plan.info, f"{task.name} test"
    known, room = info.limits.tokens, config.max_length
    check_prompts_known(known, test.rows, info.tokenizer, task.name)
    mode, answers = scoring_mode(info.kind, task, config.scoring.mode), task.answers()
    if mode == "options" and info.kind != "encoder":
        # With a stand-in for the answer: each option in its place would take too long to try.
        stand_ins = [answered(row, ".") for row in test.rows]
        cut = _cut(_make_features(plan, stand_ins, where))
        options = [{"prompt": "?", "completion": option} for option in answers or ()]
        _make_features(plan, options, f"{task.name} options")
    else:
        if mode == "generate":
            lengths = (config.max_length, config.max_completion_length)
            room = room_for_prompt(info.kind, info.limits, *lengths)
        asked, cut = prompts(test.rows, info.tokenizer, info.kind, room, where, info.cache)
        for number, ids in enumerate(asked, 1):
            check_known(ids, known, info.tokenizer, f"{where}, row {number}")
    return truncated(test, where, cut, config.max_length, room)


def check_general(plan: Plan) -> list[str]:
    """Check that the rows of general use are there, fit, and have a method that looks at them.

    Returns what is to be said of how they were read.

    Raises:
        PerdureError: with what is wrong with the file, or the setting to change.
    """
    general = plan.config.general
    if general.file is None:
        return []
    if not any(method.rehearses for method in plan.methods):
        raise PerdureError(
            f"general: no method of {plan.config.method!r} rehearses rows; take replay or "
            "recurrent_kif"
        )
    if plan.info.kind == "encoder":
        raise PerdureError(
            "general: an encoder learns only the labels of its tasks; leave general out"
        )
    split = file_split(general.file, None, plan.config.seed)
    _make_features(plan, split.rows, "general")
    return list(split.notes)


def _make_features(
    plan: Plan, rows: Sequence[Row], where: str, labels: Sequence[str] | None = None
) -> list[Tokens]:
    """Make the features of rows; return their tokens, which are kept for the stages.

    Raises:
        PerdureError: a row that the base cannot learn, or a token that it does not know.
    """
    config, info = plan.config, plan.info
    made, _ = features(
        rows,
        info.tokenizer,
        info.kind,
        config.max_length,
        config.max_completion_length,
        labels,
        where,
        config.mask_history,
        info.cache,
    )
    for number, row in enumerate(made, 1):
        learned = row["labels"] if isinstance(row["labels"], list) else []
        ids = [*row["input_ids"], *learned]
        check_known(ids, info.limits.tokens, info.tokenizer, f"{where}, row {number}")
    return encode_all(
        rows,
        info.tokenizer,
        info.kind,
        config.max_length,
        config.max_completion_length,
        where,
        config.mask_history,
        info.cache,
    )


def _cut(encoded_rows: Sequence[Tokens]) -> list[int]:
    """Return the indices of the rows that were cut."""
    return [i for i, tokens in enumerate(encoded_rows) if tokens.truncated]


def _check_training(plan: Plan, task: Task) -> None:
    config = plan.config
    training = {**DEFAULT_TRAINING, **config.training, **task.training}
    batch, count = training["per_device_train_batch_size"], len(task.train.rows)
    if training.get("dataloader_drop_last") and count < batch:
        raise PerdureError(
            f"task {task.name!r}: training.dataloader_drop_last drops all of its {count} rows, "
            f"fewer than a batch of {batch}; leave it out"
        )
    if not task.training:
        return
    if config.mode in TOGETHER:
        raise PerdureError(
            f"task {task.name!r}: mode {config.mode} learns all tasks at once, so none has a "
            "training: of its own; leave it out"
        )
    for key in ("report_to", "run_name", "project"):
        if key in task.training:
            raise PerdureError(
                f"task {task.name!r}: training: {key} is the whole run's; set it there"
            )
    try:
        plan.arguments({**config.training, **task.training})
    except PerdureError as error:
        raise PerdureError(f"task {task.name!r}: {error}") from error
