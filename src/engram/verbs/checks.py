"""What can be known to be wrong before anything is trained or written."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engram.config import Config
from engram.data.stream import file_split
from engram.data.task import Task
from engram.data.tokens import features
from engram.errors import EngramError
from engram.learn.arguments import training_arguments
from engram.learn.methods import make
from engram.measure.evaluate import scoring_mode
from engram.measure.metrics import find_metric
from engram.measure.predict import MAX_LENGTH
from engram.models.base import (
    Kind,
    check_adapter,
    check_quantization,
    kind_of,
    load_config_and_tokenizer,
    positions,
)


def check_settings(config: Config) -> None:
    """Everything about the settings that can be known without a base and without rows."""
    _check_processes()
    make(config.method)
    training_arguments(config.training, Path("unused"), 0, config.checkpoint_every)
    if config.adapter is not None:
        check_adapter({"peft_type": "LORA", **config.adapter})
    check_quantization(config.quantization, config.adapter)
    if config.mode != "sequential" and config.method != "sequential":
        raise EngramError(f"mode {config.mode} takes no method; set method=sequential")


def settle(config: Config) -> None:
    """What the base decides: a number for a `max_length` left to it, and whether methods fit it.

    Raises:
        EngramError: no such base, it has fewer positions than `max_length` says, or a method
            cannot work under these settings.
    """
    settings, _ = load_config_and_tokenizer(config.base, config.revision)
    most = positions(settings)
    if not config.max_length:
        config.max_length = min(MAX_LENGTH, most or MAX_LENGTH)
    elif most and config.max_length > most:
        raise EngramError(
            f"max_length: {config.max_length} is more than the {most} positions of base "
            f"{config.base!r}; set max_length={most} or fewer"
        )
    for method in make(config.method):
        method.check(config, kind_of(settings, config.base))


def check_tasks(config: Config, tasks: Sequence[Task]) -> None:
    """That the base can learn every row and the tasks can be scored, before anything is written.

    Raises:
        EngramError: with the task, and the row that does not fit.
    """
    _check_processes()
    settings, tokenizer = load_config_and_tokenizer(config.base, config.revision)
    kind = kind_of(settings, config.base)
    check_quantization(config.quantization, config.adapter, kind)
    encode = partial(
        features,
        tokenizer=tokenizer,
        kind=kind,
        max_length=config.max_length,
        max_completion_length=config.max_completion_length,
    )
    _check_general(config, kind, encode)
    for task in tasks:
        _check_training(config, task)
        if not task.train.rows:
            raise EngramError(f"task {task.name!r} has no training rows; give at least one")
        answers, labels = task.answers(), None
        if kind == "encoder":
            labels = list(answers or ())
        encode(task.train.rows, labels=labels, where=f"{task.name} train")
        find_metric(task.metric)
        if task.test is None:
            continue
        mode = scoring_mode(kind, task, config.scoring.mode)
        if mode == "options" and kind != "encoder":
            options = [{"prompt": "?", "completion": option} for option in answers or ()]
            encode(options, labels=None, where=f"{task.name} options")


def _check_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise EngramError(
            "several processes: a lineage has one writer; for DDP, take RecurrentKIF as a callback "
            "of your own Trainer"
        )


def _check_training(config: Config, task: Task) -> None:
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


def _check_general(config: Config, kind: Kind, encode: Callable[..., Any]) -> None:
    """That the rows of general use are there, fit, and have a method that looks at them."""
    general = config.general
    if general.file is None:
        return
    if not general.ratio > 0:
        raise EngramError(
            f"general: ratio must be above 0, got {general.ratio}; 0.1 is one row for ten new ones"
        )
    if not any(method.rehearses for method in make(config.method)):
        raise EngramError(
            f"general: no method of {config.method!r} rehearses rows; take replay or recurrent_kif"
        )
    if kind == "encoder":
        raise EngramError(
            "general: an encoder learns only the labels of its tasks; leave general out"
        )
    rows = file_split(general.file, None, config.seed).rows
    encode(rows, labels=None, where="general")
