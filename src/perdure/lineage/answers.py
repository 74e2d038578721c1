"""The answers to test rows that the stages of a lineage store."""

from collections.abc import Sequence
from typing import Any

from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.measure.predictions import Predictions, read_predictions
from perdure.models.layout import PREDICTIONS


def stored_answers(lineage: Lineage, entry: dict[str, Any]) -> dict[str, dict[str, Predictions]]:
    """Return the answers that a stage stores, by `before` or `after` and by task."""
    file = lineage.file(entry, PREDICTIONS)
    return read_predictions(file) if file else {"before": {}, "after": {}}


def newest_answers(lineage: Lineage, stages: Sequence[dict[str, Any]]) -> dict[str, Predictions]:
    """Return the newest answers to each task in some stages, which are in order."""
    newest: dict[str, Predictions] = {}
    missing = {task["id"] for entry in stages for task in learned_by(entry) if "test" in task}
    for entry in reversed(stages):
        newest = stored_answers(lineage, entry)["after"] | newest
        if missing <= newest.keys():
            break
    return newest


def first_answers(lineage: Lineage, stages: Sequence[dict[str, Any]]) -> dict[str, Predictions]:
    """Return the answers to each task right after it was learned, in some stages in order."""
    first: dict[str, Predictions] = {}
    for entry in stages:
        first = stored_answers(lineage, entry)["after"] | first
    return first
