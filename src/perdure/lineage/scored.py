"""Scores of a new task before it is learned that stages of the lineage have stored already.

They need not be measured again, because the weights are the same. A stage that was reverted or
refused may have learned the same task from the same stage, any stage that has learned the task has
scored the base, and the newest stage may have scored the same test rows as those of an old task.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perdure.config import Config
from perdure.lineage.answers import stored_answers
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.models.layout import PREDICTIONS, SCORES
from perdure.train.method import Method
from perdure.train.stage import Before


def scored_before(lineage: Lineage, entry: dict[str, Any], methods: Sequence[Method]) -> Before:
    """Return the stored scores of a new task by the base and by the model that will learn it.

    Args:
        lineage: the lineage.
        entry: the new stage's line of the ledger.
        methods: the methods of the lineage.
    """
    if "test" not in entry["task"]:
        return Before()
    before = _as_old_task(lineage, entry, methods)
    asked = _asked(entry["task"], lineage.config)
    for line in reversed(lineage.ledger):
        if "task" not in line or not _is_asked(lineage, line, line["task"], asked):
            continue
        name = line["task"]["id"]
        scores, answers = lineage.scores(line), stored_answers(lineage, line)["before"]
        same_weights = entry["mode"] != "sequential" or line["parent"] == entry["parent"]
        if same_weights and before.cell is None and name in answers:
            cell = scores["before"].get(name)
            before = replace(before, cell=cell, predictions=answers[name])
        if before.base is None:
            before = replace(before, base=scores["base"].get(name))
    return before


def _as_old_task(lineage: Lineage, entry: dict[str, Any], methods: Sequence[Method]) -> Before:
    """Return the scores of the same test rows as those of an old task at the newest stage.

    A method may change how the model answers only after it has learned, so then there are none.
    """
    stages = lineage.stages
    plain = all(type(method).inference is Method.inference for method in methods)
    if entry["mode"] != "sequential" or not stages or not plain:
        return Before()
    asked = _asked(entry["task"], lineage.config)
    for described in (task for line in stages for task in learned_by(line)):
        if not _is_asked(lineage, stages[-1], described, asked):
            continue
        name = described["id"]
        predictions = stored_answers(lineage, stages[-1])["after"].get(name)
        if predictions is not None and predictions.rows is None:
            cell = lineage.scores(stages[-1])["after"].get(name)
            return Before(cell=cell, predictions=predictions)
    return Before()


def _is_asked(
    lineage: Lineage, line: dict[str, Any], task: dict[str, Any], asked: tuple[Any, ...]
) -> bool:
    """Return whether a stage that stores its scores has asked a task's test rows in this way."""
    if task.get("test", {}).get("sha256") != asked[0] or lineage.is_deleted(line):
        return False
    if _asked(task, lineage.config_at(line)) != asked:
        return False
    return all(lineage.is_intact(line, name) for name in (SCORES, PREDICTIONS))


def _asked(task: dict[str, Any], config: Config) -> tuple[Any, ...]:
    """Return all that decides the score of a task beside the weights, its test rows first."""
    return (
        task["test"]["sha256"],
        task["metric"],
        task.get("metric_source"),
        task["options"],
        config.scoring.mode,
        config.scoring.batch_size,
        config.max_length,
        config.max_completion_length,
        config.training.get("bf16"),
        config.threads,
    )
