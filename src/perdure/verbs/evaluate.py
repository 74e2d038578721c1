"""`evaluate` scores a stage again."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perdure.data.task import Task
from perdure.errors import PerdureError, nearest
from perdure.lineage.files import write_text
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import as_stored, base_at, stage_entry
from perdure.lineage.sources import reopen
from perdure.measure.predictions import Predictions
from perdure.methods import make
from perdure.models.pins import check_pin
from perdure.say import Say
from perdure.train.stage import score


def evaluate(
    path: str | Path,
    stage: int | None,
    tasks: Sequence[str],
    mode: str | None,
    predictions: str | Path | None,
    data: str | Path | None,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """Return the score of each task and how it was scored. See `perdure.api.evaluate`."""
    lineage = Lineage(path)
    if not lineage.stages:
        reverted = lineage.next_stage > 1
        state = "every stage is reverted" if reverted else "nothing has been learned yet"
        remedy = f"revert {path} --to STAGE" if reverted else f"learn {path} NAME train.jsonl"
        raise PerdureError(f"{path}: {state}, so there is nothing to score; `perdure {remedy}`")
    entry = stage_entry(lineage, stage)
    ids = [task["id"] for e in lineage.standing for task in learned_by(e)]
    for name in tasks:
        if name not in ids:
            raise PerdureError(f"{path}: no task {name!r} was learned; {nearest(name, ids)}")
    if predictions:
        _check_place(Path(predictions), lineage)
    learned_with = lineage.config_at(entry)
    config = replace(lineage.config, method=learned_with.method, training=learned_with.training)
    if mode:
        config = replace(config, scoring=replace(config.scoring, mode=mode))
    check_pin(lineage.pin)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    base = base_at(lineage, entry)
    cells, lines = {}, []
    for e in lineage.standing:
        if config.mode == "per_task" and stage is None:  # each task has its own adapter
            base = base_at(lineage, e)
        for described in learned_by(e):
            name = described["id"]
            if tasks and name not in tasks:
                continue
            task = reopen(lineage, described, data, say, alone=True)
            with as_stored(lineage, entry, base):
                cells[name], predictions_of_task = score(base, task, config, make(config.method))
            lines += _lines(name, task, predictions_of_task)
    if predictions:
        write_text(Path(predictions), "".join(lines))
    return cells


def _check_place(file: Path, lineage: Lineage) -> None:
    """Check before the scoring that the file can be written, since it is written last."""
    folder, place = file.absolute().parent, file.resolve()
    if place.is_relative_to(lineage.path.resolve()):
        raise PerdureError(
            f"{file}: is in the lineage, which evaluate does not change; give another"
        )
    for entry in lineage.ledger:  # a stage that was left may be gone back to
        for described in learned_by(entry) if "task" in entry else ():
            for split in ("train", "dev", "test"):
                source = (described.get(split) or {}).get("source") or {}
                if "path" in source and (lineage.path / source["path"]).resolve() == place:
                    raise PerdureError(
                        f"{file}: has the {split} rows of {described['id']}; give another file"
                    )
    guard = lineage.config.guard
    for name, rows in (
        ("general.file", lineage.config.general.file),
        ("guard.rows", guard.rows if guard else None),
    ):
        source = rows.get("path") if isinstance(rows, dict) else rows
        if isinstance(source, str | Path) and Path(source).resolve() == place:
            raise PerdureError(f"{file}: has the rows of {name}; give another file")
    if not folder.is_dir():
        raise PerdureError(f"{file}: there is no folder {folder}; create it or give another file")
    if file.is_dir() or not os.access(folder, os.W_OK):
        raise PerdureError(f"{file}: cannot be written; give another file")


def _lines(name: str, task: Task | None, answered: Predictions) -> list[str]:
    if task is None or task.test is None:
        return []
    lines = []
    answers = zip(task.test.rows, answered.answers, answered.scores, strict=False)
    for number, (row, answer, row_score) in enumerate(answers, 1):
        record = {"task": name, "row": number, **row, "prediction": answer, "score": row_score}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return lines
