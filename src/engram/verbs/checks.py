"""What can be known to be wrong before anything is trained or written."""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.config import TRAINING, Config, General
from engram.data.checks import check_task, truncated, warnings
from engram.data.hub import SPLITS
from engram.data.remarks import remarks
from engram.data.rows import Row, answered
from engram.data.stream import check_stream, file_split
from engram.data.task import Task
from engram.data.tokens import encode
from engram.data.unwritten import unwritten
from engram.errors import EngramError, nearest
from engram.measure.evaluate import scoring_mode
from engram.measure.metrics import find_metric
from engram.methods import make
from engram.models.base import (
    Kind,
    check_adapter,
    check_owned,
    check_quantization,
    kind_of,
    load_config_and_tokenizer,
)
from engram.models.layout import GENERAL
from engram.models.limits import limits
from engram.train.arguments import training_arguments
from engram.verbs.fitting import check_prompts_known, fit, known_features


# The numbers that a key takes: the smallest and the largest, and what to write instead.
LIMITS: dict[str, tuple[float, float, str]] = {
    "memory.ratio": (0, 1, "0.02 keeps two of a hundred rows, 1 keeps all"),
    "scoring.batch_size": (1, math.inf, "32 rows at once is the default"),
    "max_length": (0, math.inf, "0 is 512, or as many as the base can take"),
    "max_completion_length": (1, math.inf, "128 is the default"),
    "checkpoint_every": (0, math.inf, "0 keeps none"),
    "seed": (0, 2**32 - 1, "0 is the default"),
    "threads": (1, math.inf, "null takes PyTorch's own number"),
}


def check_settings(config: Config) -> None:
    """Everything about the settings that can be known without a base and without rows."""
    _check_processes()
    check_values(config)
    make(config.method)
    training_arguments(config.training, Path("unused"), 0, config.checkpoint_every)
    if config.adapter is not None:
        check_adapter({"peft_type": "LORA", **config.adapter})
        check_owned(config.adapter)
    check_quantization(config.quantization, config.adapter)
    if config.memory.per_answer < 0:
        raise EngramError(
            f"memory: per_answer must be >= 0, got {config.memory.per_answer}; 1 keeps a row of "
            "each answer"
        )
    if config.mode != "sequential" and config.method != "sequential":
        raise EngramError(f"mode {config.mode} takes no method; set method=sequential")


def check_values(config: Config) -> None:
    """Refuse numbers out of their limits and texts that are empty."""
    for key, (low, high, instead) in LIMITS.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not low <= value <= high:  # type: ignore[operator]
            limits = f"from {low} to {high}" if high < math.inf else f"at least {low}"
            raise EngramError(f"{key}: must be {limits}, got {value}; {instead}")
    if config.general.file is None and config.general.ratio != General.ratio:
        raise EngramError(
            f"general: ratio is {config.general.ratio}, but there is no general.file to draw from; "
            "set general.file"
        )
    if not config.general.ratio > 0:
        raise EngramError(
            f"general: ratio must be above 0, got {config.general.ratio}; 0.1 is one row for ten "
            "new ones"
        )
    for key in ("base", "revision", "tasks", "data", "lineage"):
        value = getattr(config, key)
        if isinstance(value, str) and not value.strip():
            raise EngramError(f"{key}: is empty; leave it out or give a value")
    for split, limit in config.rows.items():
        if split not in SPLITS:
            raise EngramError(f"rows: unknown key {split!r}; {nearest(str(split), SPLITS)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise EngramError(
                f"rows: {split} must be a whole number of at least 1, got {limit!r}; leave it out "
                "for all rows"
            )
    if config.data and not Path(config.data).is_dir():
        raise EngramError(f"data: {config.data}: no such folder; give that of the benchmarks' rows")
    check_stream(config)


def settle(config: Config) -> None:
    """What the base decides: lengths left to it, adapter targets, and whether methods fit it.

    Raises:
        EngramError: no such base, it has fewer positions or tokens than the settings or the
            tokenizer say, or a method cannot work under these settings.
    """
    kind = fit(config)
    for method in make(config.method):
        method.check(config, kind)


def check_tasks(config: Config, tasks: Sequence[Task]) -> list[str]:
    """That the base can learn every row and the tasks can be scored, before anything is written.

    Returns what is to be said before they are learned, a line each: what was left out of the files,
    and what is probably a mistake.

    Raises:
        EngramError: with the task, and the row that does not fit.
    """
    _check_processes()
    for task in tasks:
        check_task(task)
        if task.name == GENERAL:
            raise EngramError(
                f"task {task.name!r}: that is what the general rows are called; rename it"
            )
    settings, tokenizer = load_config_and_tokenizer(config.base, config.revision)
    kind = kind_of(settings, config.base)
    check_quantization(config.quantization, config.adapter, kind)
    tokens = limits(settings, kind).tokens
    make_features = _encoder(config, tokenizer, kind, tokens)
    notes = _check_general(config, kind, make_features)
    lines = warnings(tasks)
    for task in tasks:
        _check_training(config, task)
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
            long = _long(config, kind, tokenizer, task.train.rows)
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
            long = _long(config, kind, tokenizer, questions)
            lines += truncated(task.test, where, long, config.max_length)
        if mode == "options" and kind != "encoder":
            options = [{"prompt": "?", "completion": option} for option in answers or ()]
            make_features(options, labels=None, where=f"{task.name} options")
    return [*dict.fromkeys(notes), *(f"warning: {line}" for line in lines)]


def _long(
    config: Config, kind: Kind, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> list[int]:
    """The rows, by index, whose prompt is cut."""
    lengths = (config.max_length, config.max_completion_length)
    return [i for i, row in enumerate(rows) if encode(row, tokenizer, kind, *lengths).truncated]


def check_general(config: Config) -> None:
    """That the rows of general use can be learned, if there are any.

    Raises:
        EngramError: with what is wrong with the file, or the setting to change.
    """
    settings, tokenizer = load_config_and_tokenizer(config.base, config.revision)
    kind = kind_of(settings, config.base)
    encode = _encoder(config, tokenizer, kind, limits(settings, kind).tokens)
    _check_general(config, kind, encode)


def _encoder(config: Config, tokenizer: Any, kind: Kind, tokens: int | None) -> Callable[..., Any]:
    """`features` under the settings, of which the base knows every token."""
    return partial(
        known_features,
        tokens,
        tokenizer=tokenizer,
        kind=kind,
        max_length=config.max_length,
        max_completion_length=config.max_completion_length,
        mask_history=config.mask_history,
    )


def _check_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise EngramError(
            "several processes: a lineage has one writer; for DDP, take RecurrentKIF as a callback "
            "of your own Trainer"
        )


def _check_training(config: Config, task: Task) -> None:
    training = {**TRAINING, **config.training, **task.training}
    batch, count = training["per_device_train_batch_size"], len(task.train.rows)
    if training.get("dataloader_drop_last") and count < batch:
        raise EngramError(
            f"task {task.name!r}: training.dataloader_drop_last drops all of its {count} rows, "
            f"fewer than a batch of {batch}; leave it out"
        )
    if not task.training:
        return
    if config.mode == "joint":
        raise EngramError(
            f"task {task.name!r}: mode joint learns all tasks at once, so none has a training: of "
            "its own; leave it out"
        )
    for key in ("report_to", "run_name", "project"):
        if key in task.training:
            raise EngramError(
                f"task {task.name!r}: training: {key} is the whole run's; set it there"
            )
    training = {**config.training, **task.training}
    try:
        training_arguments(training, Path("unused"), 0, config.checkpoint_every)
    except EngramError as error:
        raise EngramError(f"task {task.name!r}: {error}") from error


def _check_general(config: Config, kind: Kind, make_features: Callable[..., Any]) -> list[str]:
    """That the rows of general use are there, fit, and have a method that looks at them.

    Returns what is to be said of how they were read.
    """
    general = config.general
    if general.file is None:
        return []
    if not any(method.rehearses for method in make(config.method)):
        raise EngramError(
            f"general: no method of {config.method!r} rehearses rows; take replay or recurrent_kif"
        )
    if kind == "encoder":
        raise EngramError(
            "general: an encoder learns only the labels of its tasks; leave general out"
        )
    split = file_split(general.file, None, config.seed)
    make_features(split.rows, labels=None, where="general")
    return list(split.notes)
