"""The verdict on a stage: what it gained and lost, judged from the answers that were stored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.data.checks import asked_text
from perdure.data.rows import references
from perdure.data.task import Task
from perdure.lineage.answers import newest_answers, stored_answers
from perdure.lineage.guard_answers import stored_guard_answers
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import reopen_rows
from perdure.measure.guard.kept import Kept
from perdure.measure.predictions import Predictions, on_common_rows, read_predictions
from perdure.measure.verdict import Asked, lost_now, verdict
from perdure.models.layout import PREDICTIONS, VERDICT
from perdure.say import Say
from perdure.train.method import Method


GUARDED = "(guard)"  # the name of the guard's rows among those of tasks


def judge(
    lineage: Lineage,
    built: Path,
    task_id: str,
    tasks: Mapping[str, Task | None],
    first: Mapping[str, Predictions],
    methods: Sequence[Method],
    general: Mapping[str, Any],
    verb: str,
    undone: int | None = None,
    alone: float | None = None,
) -> dict[str, Any]:
    """Judge a stage before it is committed, and write the verdict into its folder.

    Args:
        lineage: the lineage without the stage.
        built: the folder of the stage's files.
        task_id: the task that the stage learned.
        tasks: the tasks that were scored after it, by id; None if the rows of a task are gone.
        first: the answers to each old task right after it was learned.
        methods: the methods of the lineage.
        general: its general ability (`measure_general`).
        verb: the verb that makes the stage.
        undone: the stage whose arrival the stage takes out, if it does; the task is that one's.
        alone: the score on the task of the checkpoint that was merged, on its own, if it is known.
    """
    current = read_predictions(built / PREDICTIONS)
    asked = {
        name: Asked([references(row)[0] for row in task.test.rows], task.answers())
        for name, task in tasks.items()
        if task is not None and task.test is not None
    }
    judged = verdict(
        task_id,
        before={**newest_answers(lineage, lineage.stages), **current["before"]},
        after=current["after"],
        asked=asked,
        first=first,
        unmeasured=[name for name in tasks if name not in asked],
        general=general,
    )
    if undone is not None:
        judged["undone"] = undone
        if judged["learned"]:
            judged["learned"]["collapse"] = None  # of a task that is no longer to be answered
    if alone is not None:
        judged["alone"] = alone
    judged["suggestion"] = suggestion(lineage, judged, methods, verb)
    text = json.dumps(judged, sort_keys=True, ensure_ascii=False, indent=2)
    (built / VERDICT).write_text(text + "\n", encoding="utf-8")
    return judged


def changed_rows(
    lineage: Lineage, entry: dict[str, Any], data: str | Path | None, say: Say
) -> list[dict[str, Any]]:
    """Return the rows whose score a stage changed, those that fell first, the guard's at the end.

    The guard's rows are compared with the base, and their task is `(guard)`. Each is a mapping of
    `task`, `row` (from 1, or the id of a guard's row), `question` and `right` (null if the rows are
    gone), `before` and `after` (the answers), and their scores.
    """
    stored = stored_answers(lineage, entry)
    line = [e for e in lineage.line(entry["stage"]) if e["stage"] < entry["stage"]]
    before = {**newest_answers(lineage, line), **stored["before"]}
    described = {task["id"]: task for e in [*line, entry] for task in learned_by(e)}
    changed = []
    for name, after in stored["after"].items():
        earlier = before.get(name)
        common = on_common_rows(earlier, after) if earlier and name in described else None
        if common is None or common[0].scores == common[1].scores:
            continue
        earlier, after = common
        test = reopen_rows(lineage, described[name], data, say)
        known = test is not None and len(test.rows) == after.count
        records = zip(earlier.answers, after.answers, earlier.scores, after.scores, strict=True)
        for place, (old, new, old_score, new_score) in enumerate(records):
            if old_score != new_score:
                index = after.row(place)
                row = test.rows[index] if test and known else None
                record = {"task": name, "row": index + 1, "question": None, "right": None}
                if row is not None:
                    record |= {"question": asked_text(row), "right": references(row)[0]}
                record |= {"before": old, "after": new}
                changed.append(record | {"score_before": old_score, "score_after": new_score})
    changed += _flipped(stored_guard_answers(lineage, entry))
    return sorted(
        changed, key=lambda r: (r["task"] == GUARDED, r["score_before"] < r["score_after"])
    )


def _flipped(answers: Mapping[str, Kept]) -> list[dict[str, Any]]:
    """Return the guard's rows of which only the base's or only the stage's answer passes."""
    return [
        {
            "task": GUARDED,
            "row": row_id,
            "question": kept.prompt,
            "right": None,
            "before": kept.base.text,
            "after": kept.answer,
            "score_before": float(kept.base_passes),
            "score_after": float(kept.passes),
        }
        for row_id, kept in answers.items()
        if kept.passes is not None and kept.base_passes != kept.passes
    ]


def suggestion(
    lineage: Lineage, judged: dict[str, Any], methods: Sequence[Method], verb: str
) -> str | None:
    """Return what to try next, None if nothing is wrong.

    It does not name the lineage's folder, on which the bytes of a stage must not depend.
    """
    config, learned = lineage.config, judged["learned"]
    general_lost = lost_now(judged["general"])
    tasks_lost = judged["lost"] or judged.get("together", {}).get("lost")
    if (tasks_lost or general_lost) and config.mode == "sequential":
        undo = f"`perdure revert FOLDER --to {lineage.head}` undoes the stage"
        if "undone" in judged:
            return undo
        if verb == "merge":
            return f"{undo}; `perdure merge` with a smaller --weight, or --search, may keep more"
        anchors = [method for method in methods if getattr(method, "source", None) == "base"]
        if general_lost and not anchors:
            change = "`perdure set FOLDER 'method=[replay,kl_base]'` before the next try"
        elif not tasks_lost:
            (anchor, *_) = anchors
            strength = getattr(anchor, "strength", None)
            more = (
                f", or a larger strength of {anchor.label} (now {strength:g})," if strength else ""
            )
            change = f"`perdure set FOLDER training.learning_rate=...` (lower){more}"
        elif any(method.rehearses for method in methods):
            more = f"or a new lineage with a larger memory.ratio (now {config.memory.ratio:g})"
            change = f"`perdure set FOLDER training.learning_rate=...` (lower), {more},"
        else:
            change = "`perdure set FOLDER method=replay` (or recurrent_kif) before the next try"
        return f"{undo}; {change} may keep more"
    if learned and learned["after"] <= (learned["before"] or 0.0) < judged.get("alone", 0.0):
        return "nothing of the checkpoint's skill is left: try a larger --weight, or another --rule"
    if learned is None or learned["before"] is None or verb == "merge":
        return None
    if learned["collapse"]:
        return "look at the task's rows, and try a lower training.learning_rate"
    if learned["after"] <= learned["before"] < 1:
        return "the task was not learned: try more epochs, or a higher training.learning_rate"
    return None
