"""What can be known to be wrong before anything is trained or written."""

from collections.abc import Sequence
from pathlib import Path

from engram.config import Config
from engram.data.task import Task
from engram.data.tokens import features
from engram.errors import EngramError
from engram.learn.arguments import training_arguments
from engram.learn.methods import make
from engram.measure.evaluate import scoring_mode
from engram.measure.metrics import find_metric
from engram.models import check_adapter, kind_of, load_config_and_tokenizer


def check_settings(config: Config) -> None:
    """Everything about the settings that can be known without a base and without rows."""
    make(config.method)
    training_arguments(config.training, Path("unused"), 0, config.checkpoint_every)
    check_adapter({"peft_type": "LORA", **config.adapter})
    if config.mode != "sequential" and config.method != "sequential":
        raise EngramError(f"mode {config.mode} takes no method; set method=sequential")


def check_tasks(config: Config, tasks: Sequence[Task]) -> None:
    """That the base can learn every row and the tasks can be scored, before anything is written.

    Raises:
        EngramError: with the task, and the row that does not fit.
    """
    settings, tokenizer = load_config_and_tokenizer(config.base)
    kind = kind_of(settings, config.base)
    lengths = (config.max_length, config.max_completion_length)
    for task in tasks:
        if not task.train.rows:
            raise EngramError(f"task {task.name!r} has no training rows; give at least one")
        answers, labels = task.answers(), None
        if kind == "encoder":
            labels = list(answers or ())
        features(task.train.rows, tokenizer, kind, *lengths, labels, f"{task.name} train")
        find_metric(task.metric)
        if task.test is None:
            continue
        mode = scoring_mode(kind, task, config.scoring.mode)
        if mode == "options" and kind != "encoder":
            options = [{"prompt": "?", "completion": option} for option in answers or ()]
            features(options, tokenizer, kind, *lengths, None, f"{task.name} options")
