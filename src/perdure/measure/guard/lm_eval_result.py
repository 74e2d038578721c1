"""The scores of two models on lm-eval's tasks, paired document by document, and what is kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from perdure.measure.compressed import read_compressed, write_compressed
from perdure.measure.guard.loss import is_loss
from perdure.measure.statistics import SIGNIFICANCE, mean, sign_test


MOST_LINES = 8  # of tasks that are not lost, beyond which there is only their number
OfDocuments = Mapping[str, float | None]  # values by document, None if not a finite number
Values = Mapping[str, OfDocuments]  # by task


@dataclass(frozen=True)
class Metric:
    """The metric of a task whose values are compared.

    Args:
        name: lm-eval's name of it.
        filter: the name of the filter through which the responses pass.
        higher_is_better: whether a larger value is better.
    """

    name: str
    filter: str
    higher_is_better: bool


@dataclass(frozen=True)
class Asked:
    """What a model has responded.

    Args:
        responses: its responses, by the keys of the requests.
        values: for each task the values of its metric, by the keys of the documents; None for a
            value that is not a finite number.
    """

    responses: dict[str, Any]
    values: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class KeptHarness:
    """What is kept with a stage.

    Args:
        responses: the base's responses, by the keys of the requests.
        values: the stage's values by task and document.
    """

    responses: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, float | None]] = field(default_factory=dict)


class _Stored(TypedDict):
    responses: dict[str, Any]
    values: dict[str, dict[str, float | None]]


def write_kept(file: Path, base: Asked, stage: Asked) -> None:
    """Write what is kept with a stage, as compressed JSON."""
    write_compressed(file, {"responses": base.responses, "values": stage.values})


def read_kept(file: Path) -> KeptHarness:
    """Read what `write_kept` wrote.

    Raises:
        PerdureError: the file is damaged.
    """
    return read_compressed(file, _Stored, lambda plain: KeptHarness(**plain))


def compare_tasks(
    metrics: Mapping[str, Metric], before: Values, now: Values
) -> dict[str, dict[str, Any]]:
    """Compare the values of two models.

    Returns:
        For each task `metric`, `filter`, `higher_is_better`, `documents` (those of which the first
        model has a value), `before` and `now` (the means; None if the second model has no value of
        one of them), `fell` and `rose` (how many documents
        are worse, or have no value any more, and how many are better), `p` (of the one-sided exact
        sign test), `net` (the share of documents lost net) and `lost` (`is_loss`, with as many
        comparisons as there are tasks).
    """
    return {
        name: {
            "metric": metric.name,
            "filter": metric.filter,
            "higher_is_better": metric.higher_is_better,
            **_compared(metric, before[name], now[name], comparisons=len(metrics)),
        }
        for name, metric in metrics.items()
    }


def _compared(
    metric: Metric, before: OfDocuments, now: OfDocuments, comparisons: int
) -> dict[str, Any]:
    documents = [document for document, value in before.items() if value is not None]
    fell, rose = fallen_and_risen(metric, before, now)
    count = len(documents)
    return {
        "documents": count,
        "before": _mean(before, documents),
        "now": None if _has_lost_a_value(now, documents) else _mean(now, documents),
        "fell": fell,
        "rose": rose,
        "p": sign_test(fell, rose),
        "net": (fell - rose) / count if count else 0.0,
        "lost": bool(count) and is_loss(fell, rose, count, comparisons=comparisons),
    }


def _has_lost_a_value(values: OfDocuments, documents: Sequence[str]) -> bool:
    """Return whether a document that was asked has no value. A mean of the others may be higher."""
    return any(document in values and values[document] is None for document in documents)


def _mean(values: OfDocuments, documents: Sequence[str]) -> float | None:
    return mean([value for value in map(values.get, documents) if value is not None])


def fallen_and_risen(metric: Metric, before: OfDocuments, now: OfDocuments) -> tuple[int, int]:
    """Return how many documents are worse than before, and how many are better.

    Only those that were asked both times count. One that has no value any more is worse.
    """
    sign = 1 if metric.higher_is_better else -1
    fell = rose = 0
    for document, old in before.items():
        if old is None or document not in now:
            continue
        new = now[document]
        change = -math.inf if new is None else sign * (new - old)
        fell += change < 0
        rose += change > 0
    return fell, rose


def since(
    tasks: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    last_values: Values,
    last_tasks: Mapping[str, Mapping[str, Any]],
    now: Values,
) -> dict[str, dict[str, Any]]:
    """Add what changed since a task was asked before: `since` and `lost_before`, as for the checks.

    Args:
        tasks: the result of `compare_tasks` with the base.
        metrics: the metric of each task.
        last_values: the values of each task at the newest stage that was asked it.
        last_tasks: the results of these stages.
        now: the values of the stage.
    """
    added = {}
    for name, task in tasks.items():
        fell, rose = fallen_and_risen(metrics[name], last_values.get(name, {}), now[name])
        p = sign_test(fell, rose)
        had_lost = last_tasks.get(name, {}).get("lost", False)
        added[name] = {
            **task,
            "since": {"fell": fell, "rose": rose, "p": p},
            "lost_before": task["lost"] and had_lost and p >= SIGNIFICANCE,
        }
    return added


def task_words(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a line for each of lm-eval's tasks, by its name."""
    comparisons = len(tasks)
    return {
        name: f"general ability (lm-eval's {name}): {_words(task, comparisons)}"
        for name, task in tasks.items()
    }


def short_lines(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of tasks that are not lost, or how many these are if there are many."""
    kept = [name for name, task in tasks.items() if not task["lost"]]
    if len(kept) > MOST_LINES:
        return [f"general ability: {len(kept)} of lm-eval's {len(tasks)} tasks are not lost"]
    lines = task_words(tasks)
    return [lines[name] for name in kept]


def _words(task: Mapping[str, Any], comparisons: int) -> str:
    documents, fell, rose, p = (task[key] for key in ("documents", "fell", "rose", "p"))
    if not documents:
        return "not judged, because the base has a value for no document"
    before, now = (
        "no value" if task[key] is None else f"{task[key]:.3f}" for key in ("before", "now")
    )
    scores = f"{task['metric']} {before} -> {now}"
    if not fell:
        return f"{scores}, none of {documents} documents fell: nothing lost"
    if task["lost"]:
        conclusion = "lost before this stage already" if task.get("lost_before") else "lost"
    elif p < SIGNIFICANCE / comparisons:
        conclusion = "too little to count"
    elif sign_test(documents, 0) >= SIGNIFICANCE / comparisons:
        conclusion = "too few documents to tell"
    elif p < SIGNIFICANCE:
        conclusion = f"within noise for {comparisons} tasks"
    else:
        conclusion = "within noise"
    return f"{scores}, {fell} of {documents} documents fell, {rose} rose, p = {p:.2g}: {conclusion}"
