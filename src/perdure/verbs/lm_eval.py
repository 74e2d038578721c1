"""lm-eval's tasks at a stage: the base and the stage are asked the same documents."""

from pathlib import Path
from typing import Any

from perdure.lineage.lineage import Lineage
from perdure.measure.guard.lm_eval_result import (
    KeptHarness,
    OfDocuments,
    compare_tasks,
    read_kept,
    since,
    write_kept,
)
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.guard.subject import Subject
from perdure.models.layout import LM_EVAL


def measure_tasks(
    lineage: Lineage, tasks: LmEvalTasks, reference: Subject, subject: Subject, built: Path
) -> dict[str, dict[str, Any]]:
    """Ask a stage lm-eval's tasks before its commit, and keep what was found in its folder.

    Args:
        lineage: the lineage without the stage.
        tasks: the tasks, with their metrics.
        reference: the untouched base, of which only what no earlier stage has asked is asked.
        subject: the stage.
        built: the folder of the stage's files.

    Returns:
        The result of `compare_tasks` with `since` and `lost_before`.
    """
    known: dict[str, Any] = {}
    for entry in lineage.stage_entries.values():  # also of reverted stages
        if "folder" in entry and lineage.is_intact(entry, LM_EVAL):
            known |= _kept(lineage, entry).responses
    before = tasks.ask(reference, known)
    now = tasks.ask(subject)
    write_kept(built / LM_EVAL, before, now)
    compared = compare_tasks(tasks.metrics, before.values, now.values)
    last_values: dict[str, OfDocuments] = {}
    last_tasks: dict[str, dict[str, Any]] = {}
    for entry in reversed(lineage.stages):
        if last_tasks.keys() >= compared.keys():
            break
        general = (lineage.verdict(entry) or {}).get("general") or {}
        if measured := general.get("lm_eval"):
            last_values = {**_kept(lineage, entry).values, **last_values}
            last_tasks = {**measured, **last_tasks}
    return since(compared, tasks.metrics, last_values, last_tasks, now.values)


def _kept(lineage: Lineage, entry: dict[str, Any]) -> KeptHarness:
    """Return what is kept with a stage, which is nothing if it has no such file."""
    file = lineage.file(entry, LM_EVAL)
    return read_kept(file) if file else KeptHarness()
