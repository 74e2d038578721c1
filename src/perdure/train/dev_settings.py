"""The keys of `training:` that need dev rows: when they are measured, and what follows from it.

They have transformers' names. `eval_strategy`, `eval_steps`, `eval_delay` and
`metric_for_best_model` are TrainingArguments'. `load_best_model_at_end` is too, but the engine does
this itself, because transformers ties it to the checkpoints that are saved.
`early_stopping_patience` and `early_stopping_threshold` are those of EarlyStoppingCallback.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perdure.errors import PerdureError


Metric = Literal["loss", "score"]

EARLY_STOPPING = {"early_stopping_patience": int, "early_stopping_threshold": float}
# Keys that `TrainingArguments` does not have, or that the engine does in place of the Trainer.
OWN_KEYS = (*EARLY_STOPPING, "load_best_model_at_end")
KEYS = (*OWN_KEYS, "eval_strategy", "eval_steps", "eval_delay", "metric_for_best_model")
# Schedules whose rate follows what is measured on the dev rows.
FOLLOWING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True)
class DevSettings:
    """What follows from measuring the dev rows.

    Args:
        metric: what is compared: the `loss`, or the `score` by the task's own metric.
        keep_best: whether the weights of the best measurement become the stage.
        patience: after how many measurements in a row without an improvement the task ends; None
            never ends it early.
        threshold: by how much a measurement must be better than the best one to count as an
            improvement.
    """

    metric: Metric = "loss"
    keep_best: bool = False
    patience: int | None = None
    threshold: float = 0.0


def strategy(training: Mapping[str, Any]) -> str | None:
    """When dev rows are measured: `steps`, `epoch` or `no`; None if the settings do not say."""
    chosen = training.get("eval_strategy")
    if chosen is None:
        return None if training.get("eval_steps") is None else "steps"
    return "no" if chosen is False else str(getattr(chosen, "value", chosen))  # YAML's `no`


def key_that_needs_rows(training: Mapping[str, Any]) -> str | None:
    """The first key that is set and has no effect without dev rows, None if there is none."""
    keys = [key for key in KEYS if training.get(key) not in (None, False)]
    return next((key for key in keys if (key, training[key]) != ("eval_strategy", "no")), None)


def for_task(training: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's `training:`, overridden by a task's own.

    With `eval_strategy: no` in the latter, none of the run's keys for dev rows hold.
    """
    return {**(without_dev(training) if strategy(own) == "no" else training), **own}


def dev_settings(training: Mapping[str, Any]) -> DevSettings:
    """What `training:` says about measurements on dev rows.

    Raises:
        PerdureError: keys that contradict each other, or a metric that is not measured.
    """
    when = strategy(training)
    if when == "no" and (key := key_that_needs_rows(training)):
        raise PerdureError(f"training: {key} needs measurements; leave out eval_strategy=no")
    if when == "steps" and training.get("eval_steps") is None:
        raise PerdureError(
            "training: eval_strategy=steps needs eval_steps, the steps from one measurement to the "
            "next; set eval_steps=50"
        )
    if when == "epoch" and training.get("eval_steps") is not None:
        raise PerdureError(
            "training: eval_strategy=epoch measures at the end of each epoch, so eval_steps has no "
            "effect; leave one of them out"
        )
    patience = training.get("early_stopping_patience")
    if patience is None and training.get("early_stopping_threshold") is not None:
        raise PerdureError(
            "training: early_stopping_threshold has no effect without early_stopping_patience, the "
            "number of measurements to wait for an improvement; set it, too"
        )
    name = training.get("metric_for_best_model") or "loss"
    metric = str(name).removeprefix("eval_")
    if metric not in ("loss", "score"):
        raise PerdureError(
            f"training: metric_for_best_model: {name!r} is not measured on dev rows; write loss, "
            "or score for the task's own metric"
        )
    return DevSettings(
        metric=metric,
        keep_best=bool(training.get("load_best_model_at_end")),
        patience=patience,
        threshold=training.get("early_stopping_threshold") or 0.0,
    )


def with_strategy(training: Mapping[str, Any], has_rows: bool) -> dict[str, Any]:
    """`training:` with `eval_strategy`, which is `epoch` by default if a task has dev rows.

    Without dev rows, one that is not set stays so, as in all tasks that have none.
    """
    when = strategy(training)
    if has_rows:
        return {**training, "eval_strategy": when or "epoch"}
    return dict(training) if when is None else {**training, "eval_strategy": "no"}


def without_dev(training: Mapping[str, Any]) -> dict[str, Any]:
    """`training:` for a training that has no dev rows."""
    others = {key: value for key, value in training.items() if key not in KEYS}
    if others.get("lr_scheduler_type") in FOLLOWING_SCHEDULES:
        others["lr_scheduler_type"] = "constant"
    return others
