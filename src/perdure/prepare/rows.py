"""Checks that the rows of tasks can be learned and scored, before anything is trained."""

from collections.abc import Sequence
from dataclasses import replace

from perdure.config import DEFAULT_TRAINING, TOGETHER
from perdure.data.checks import check_task, truncated, warnings
from perdure.data.remarks import remarks
from perdure.data.rows import Row, answered, references
from perdure.data.stream import file_split
from perdure.data.task import Split, Task
from perdure.data.tokens import check_known, encode_all, packed_features, prompts
from perdure.data.unwritten import unwritten
from perdure.errors import PerdureError
from perdure.measure.custom_metric import check_deterministic, is_custom, metric_source
from perdure.measure.evaluate import scoring_mode
from perdure.measure.known_metrics import remember
from perdure.measure.metrics import find_metric, json_valid
from perdure.measure.predict import room_for_prompt
from perdure.models.base import check_quantization
from perdure.models.layout import GENERAL
from perdure.models.token_cache import Tokens
from perdure.prepare.fitting import check_prompts_known
from perdure.prepare.plan import Plan
from perdure.prepare.settings import check_processes
from perdure.train.dev_settings import dev_settings, for_task


def check_tasks(plan: Plan, tasks: Sequence[Task]) -> list[str]:
    """Check that the base can learn every row and that the tasks can be scored.

    Returns notes and warnings, one line each: what was left out of the files, and what is probably
    a mistake.

    Raises:
        PerdureError: a row or a task does not fit; the line names it.
    """
    check_processes()
    for task in tasks:
        check_task(task)
        if task.name == GENERAL:
            raise PerdureError(
                f"task {task.name!r}: this is the name of the general rows; rename the task"
            )
    check_quantization(plan.config.quantization, plan.config.adapter, plan.info.kind)
    notes, lines = check_general(plan), warnings(tasks)
    for task in tasks:
        _check_training(plan, task)
        if not task.train.rows:
            raise PerdureError(f"task {task.name!r} has no training rows; give at least one")
        lines += _check_train(plan, task)
        lines += _check_dev(plan, task)
        lines += _check_scoring(plan, task)
        for split in filter(None, (task.train, task.dev, task.test)):
            notes += split.notes
    return [*dict.fromkeys(notes), *(f"warning: {line}" for line in lines)]


def check_adopted(plan: Plan, task: Task) -> list[str]:
    """Check a task that was learned elsewhere, as `check_tasks`; it may have no train rows."""
    if task.train.rows:
        return check_tasks(plan, [task])
    check_processes()
    check_task(task)
    lines = _check_scoring(plan, task)
    return [*(task.test.notes if task.test else ()), *(f"warning: {line}" for line in lines)]


def _check_scoring(plan: Plan, task: Task) -> list[str]:
    """Check that a task can be scored; return warnings about its test rows."""
    _check_metric(task)
    return _check_test(plan, task, task.test) if task.test is not None else []


def _check_metric(task: Task, split: str = "test") -> None:
    """Check that there is such a metric and that it can score the task's test rows."""
    find_metric(task.metric)
    test_rows = task.test.rows if task.test else ()
    if is_custom(task.metric):
        check_deterministic(task.metric, test_rows)
        remember(task.metric, metric_source(task.metric))
    for number, row in enumerate(test_rows, 1):
        if task.metric == "json_fields" and not json_valid(references(row)[0], ""):
            raise PerdureError(
                f"{task.name} {split}, row {number}: its answer is not JSON, so metric json_fields "
                "cannot compare with it; fix the row or choose another metric"
            )


def _check_train(plan: Plan, task: Task) -> list[str]:
    """Tokenize a task's train rows, which checks them, and return warnings about them."""
    tokenizer, rows, where = plan.info.tokenizer, task.train.rows, f"{task.name} train"
    encoded_rows = _check_features(plan, rows, where, list(task.answers() or ()))
    return [
        *remarks(rows, encoded_rows, tokenizer, plan.info.kind, where),
        *unwritten(rows, tokenizer, where),
        *truncated(task.train, where, _cut(encoded_rows), plan.config.max_length),
    ]


def _check_dev(plan: Plan, task: Task) -> list[str]:
    """Tokenize a task's dev rows as its train rows are, and return warnings about them.

    If their score is measured, too, they are also checked as test rows are.
    """
    if task.dev is None:
        return []
    rows, where = task.dev.rows, f"{task.name} dev"
    encoded_rows = _check_features(plan, rows, where, list(task.answers() or ()))
    if dev_settings(for_task(plan.config.training, task.training)).metric == "score":
        scored = replace(task, test=task.dev)
        _check_metric(scored, "dev")
        return _check_test(plan, scored, task.dev, "dev")
    return truncated(task.dev, where, _cut(encoded_rows), plan.config.max_length)


def _check_test(plan: Plan, task: Task, test: Split, split: str = "test") -> list[str]:
    """Tokenize the prompts of a task's test rows as `predict` does; return warnings about them."""
    config, info, where = plan.config, plan.info, f"{task.name} {split}"
    num_embeddings, room = info.limits.tokens, config.max_length
    check_prompts_known(num_embeddings, test.rows, info.tokenizer, where)
    mode, answers = scoring_mode(info.kind, task, config.scoring.mode), task.answers()
    if mode == "options" and info.kind != "encoder":
        # A placeholder replaces the answer, because trying every option would take too long.
        placeholders = [answered(row, ".") for row in test.rows]
        cut = _cut(_check_features(plan, placeholders, where))
        options = [{"prompt": "?", "completion": option} for option in answers or ()]
        _check_features(plan, options, f"{task.name} options")
    else:
        if mode == "generate":
            room = room_for_prompt(
                info.kind,
                info.limits,
                max_length=config.max_length,
                max_completion_length=config.max_completion_length,
            )
        prompt_ids, cut = prompts(
            test.rows,
            info.tokenizer,
            kind=info.kind,
            max_length=room,
            where=where,
            cache=info.cache,
        )
        for number, ids in enumerate(prompt_ids, 1):
            check_known(ids, num_embeddings, info.tokenizer, f"{where}, row {number}")
    return truncated(test, where, rows=cut, max_length=config.max_length, room=room)


def check_general(plan: Plan) -> list[str]:
    """Check that the general rows exist and fit, and that a method rehearses them.

    Returns notes on how the rows were read, one line each.

    Raises:
        PerdureError: the file is wrong, or no method rehearses.
    """
    general = plan.config.general
    if general.file is None:
        return []
    if not any(method.rehearses for method in plan.methods):
        raise PerdureError(
            f"general: no method of {plan.config.method!r} rehearses rows; use replay or "
            "recurrent_kif"
        )
    if plan.info.kind == "encoder":
        raise PerdureError(
            "general: an encoder learns only the labels of its tasks; leave general out"
        )
    split = file_split(general.file, None, plan.config.seed)
    _check_features(plan, split.rows, "general")
    return list(split.notes)


def _check_features(
    plan: Plan, rows: Sequence[Row], where: str, labels: Sequence[str] | None = None
) -> list[Tokens]:
    """Tokenize rows as for training, and return their tokens.

    The tokens stay in the base's cache for the stages.

    Raises:
        PerdureError: the base cannot learn a row, or has no embedding for a token.
    """
    config, info = plan.config, plan.info
    row_features, _ = packed_features(
        rows,
        info.tokenizer,
        kind=info.kind,
        max_length=config.max_length,
        max_completion_length=config.max_completion_length,
        labels=labels,
        where=where,
        mask_history=config.mask_history,
        cache=info.cache,
    )
    for number, row in enumerate(row_features, 1):
        learned = [] if isinstance(row["labels"], int) else row["labels"]
        ids = [*row["input_ids"], *learned]
        check_known(ids, info.limits.tokens, info.tokenizer, f"{where}, row {number}")
    return encode_all(
        rows,
        info.tokenizer,
        kind=info.kind,
        max_length=config.max_length,
        max_completion_length=config.max_completion_length,
        where=where,
        mask_history=config.mask_history,
        cache=info.cache,
    )


def _cut(encoded_rows: Sequence[Tokens]) -> list[int]:
    """Return the indices of the rows that were cut."""
    return [i for i, tokens in enumerate(encoded_rows) if tokens.truncated]


def _check_training(plan: Plan, task: Task) -> None:
    config = plan.config
    training = {**DEFAULT_TRAINING, **for_task(config.training, task.training)}
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
            f"task {task.name!r}: mode {config.mode} learns all tasks at once, so a task cannot "
            "have its own training:; leave it out"
        )
    for key in ("report_to", "run_name", "project"):
        if key in task.training:
            raise PerdureError(
                f"task {task.name!r}: training: {key} applies to the whole run; set it there"
            )
    try:
        plan.arguments(for_task(config.training, task.training))
    except PerdureError as error:
        raise PerdureError(f"task {task.name!r}: {error}") from error
