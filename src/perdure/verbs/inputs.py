"""What a stage learns from, which every process of a launch reads for itself."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.history import History
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import remembered
from perdure.methods import find, names, names_in
from perdure.models.layout import GENERAL, METHOD_STATE
from perdure.say import Say
from perdure.train.dev_settings import for_task, with_strategy
from perdure.train.method import Method


def training_of(config: Config, learned: Sequence[Task]) -> dict[str, Any]:
    """Return the `training:` of a stage, which says when dev rows are measured."""
    training = for_task(config.training, learned[-1].training)
    return with_strategy(training, any(task.dev is not None for task in learned))


def memory_of(lineage: Lineage, general: list[Row], with_old_tasks: bool) -> dict[str, list[Row]]:
    """Return the rows that a stage can rehearse, by task: general rows, and those of old tasks."""
    memory = {GENERAL: general} if general else {}
    if with_old_tasks:
        memory |= {entry["task"]["id"]: remembered(lineage, entry) for entry in lineage.standing}
    return memory


def stages_with_state(
    stages: Sequence[dict[str, Any]], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Return, by the name of a method, the line of the newest stage that it took part in.

    It is not always the last one: `adopt`, `merge` and other methods make stages without it. A
    method is left out if the stage has stored no state.

    Args:
        stages: the lines of the active stages, in order.
        names: the names of the methods.
    """
    newest = {}
    for name in names:
        learned_with = (e for e in reversed(stages) if name in names_in(e["method"]))
        entry = next(learned_with, None)
        if entry is not None and METHOD_STATE in entry["files"]:
            newest[name] = entry
    return newest


def begun_with_state(
    history: History, stage: int, method: Any, mode: str
) -> dict[str, dict[str, Any]]:
    """Return, by the name of a method, the line of the stage with whose state a next one begins.

    Args:
        history: the lineage, as it is when the next stage is learned.
        stage: the number of the stage after which it is learned.
        method: the setting `method:` with which it is learned.
        mode: the mode in which it is learned.
    """
    if mode != "sequential":
        return {}
    stateful = [n for n in names_in(method) if n not in names() or _has_state(find(n))]
    return {
        name: entry
        for name, entry in stages_with_state(history.line(stage), sorted(stateful)).items()
        if METHOD_STATE not in history.dropped_files(entry)
    }


def _has_state(method: type[Method]) -> bool:
    return method.state_dict is not Method.state_dict


def states_of(lineage: Lineage, methods: Sequence[Method], say: Say) -> dict[str, Path]:
    """Return, by the name of a method, the folder of its state (`stages_with_state`)."""
    folders = {}
    newest = stages_with_state(lineage.stages, [method.name for method in methods])
    for method in methods:
        entry = newest.get(method.name)
        if entry is None:
            continue
        if METHOD_STATE not in lineage.dropped_files(entry):
            file = lineage.file(entry, METHOD_STATE)
            assert file is not None
            folders[method.name] = file.parent
        elif _has_state(type(method)):
            say(
                f"warning: {method.label}: its state of stage {entry['stage']} was deleted by "
                "`perdure compact`, so it begins without it"
            )
    return folders


def has_tested(described: dict[str, Any], task: Task) -> bool:
    """Return whether a stage was scored on the test rows that the task has now, if it has any."""
    if task.test is None:
        return True
    rows = described.get("test", {}).get("sha256")
    return (rows, described["metric"]) == (task.test.sha256, task.metric)


def scored_otherwise(name: str, stage: int) -> str:
    """Return the beginning of the warning that a stage was scored on other test rows."""
    return (
        f"warning: {name}: stage {stage} was scored on other test rows, or by another metric, and "
        "keeps its scores"
    )


def check_same_rows(lineage: Lineage, last: dict[str, Any], task: Task, verb: str) -> None:
    """Check that a stage that was made already has the rows that are given.

    Args:
        lineage: the lineage.
        last: the stage's line of the ledger.
        task: the task with the rows that are given, of which there may be none.
        verb: the verb that made the stage, `adopt` or `merge`.

    Raises:
        PerdureError: it was scored on other rows or by another metric, or remembers other rows.
    """
    other = None
    for split, given in (("train", task.train), ("dev", task.dev), ("test", task.test)):
        has = last["task"].get(split, {}).get("sha256")
        if given is not None and given.rows and given.sha256 != has:
            other = other or f"with other {split} rows"
    if other is None and task.test is not None and task.metric != last["task"]["metric"]:
        other = "with another metric"
    if other is not None:
        done = {"adopt": "adopted", "merge": "merged"}[verb]
        raise PerdureError(
            f"{lineage.path}: stage {last['stage']} has {done} it {other}; for what you give now, "
            f"`perdure revert {lineage.path} --to {last['parent']}`, and {verb} again"
        )
