"""`probe` measures the stages of a lineage on rows outside its tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from perdure.data.probes import Probe, read_probes
from perdure.errors import PerdureError, nearest
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, check_kept, stage_entry
from perdure.measure import probes as numbers
from perdure.measure.recollection import Recollection, knows_answers, recollect
from perdure.models.pins import check_pin
from perdure.say import Say
from perdure.verbs.asking import as_scored


def probe(
    path: str | Path,
    rows: str | Path | Sequence[Mapping[str, Any]],
    learned: int | None,
    stages: Sequence[int],
    say: Say,
) -> dict[str, Any]:
    """Return the numbers of `measure.probes` for each stage. See `perdure.api.probe`."""
    lineage = Lineage(path)
    probe_rows, where = read_probes(rows)
    chosen = _chosen(lineage, learned, stages, say)
    check_pin(lineage.pin)
    torch.set_num_threads(lineage.config.threads or torch.get_num_threads())
    by_stage: dict[int, Recollection | None] = {}
    for number in reversed(chosen):  # the newest first, because its head has the most labels
        by_stage[number] = _at(lineage, number, probe_rows, where, strict=not by_stage)
    recollections = [recollection for recollection in by_stage.values() if recollection]
    return {
        "lineage": str(path),
        "rows": len(probe_rows),
        "foils": sum(probe_row.foil is not None for probe_row in probe_rows),
        "truncated": recollections[0].truncated if recollections else 0,
        "learned": learned,
        "effectivity": _effectivity(lineage, by_stage, learned),
        "stages": [_of_stage(lineage, by_stage, number, learned) for number in chosen],
    }


def _chosen(lineage: Lineage, learned: int | None, stages: Sequence[int], say: Say) -> list[int]:
    """Return the stages to probe, oldest first."""
    history = _history(lineage)
    for number in (*stages, *([] if learned is None else [learned])):
        if number not in history:
            hint = nearest(str(number), map(str, history))
            raise PerdureError(f"{lineage.path}: no stage {number} in the present history; {hint}")
    if learned == 0:
        raise PerdureError(
            f"{lineage.path}: stage 0 is the base, which learned nothing; --learned is the stage "
            "that learned the rows"
        )
    needed = set(stages) | ({_before(lineage, learned), learned} if learned else set())
    lost = {n for n in history if n and lineage.is_gone(lineage.at(n))}
    for number in sorted(lost & needed):
        check_kept(lineage, lineage.at(number))
    if lost and not stages:
        named = ", ".join(map(str, sorted(lost)))
        say(f"warning: stages not probed, because their weights were removed: {named}")
    return [n for n in history if n in needed or not (stages or n in lost)]


def _at(
    lineage: Lineage, number: int, probe_rows: list[Probe], where: str, strict: bool
) -> Recollection | None:
    """Return a stage's answers, or None if it is an encoder that does not have all labels yet.

    With `strict`, an unknown label is an error in the rows, unless the encoder has no labels at
    all. The model is freed on return, before the next one is loaded.
    """
    config = lineage.config
    entry = stage_entry(lineage, number)
    base = base_at(lineage, entry)
    if not knows_answers(base, probe_rows) and not (strict and base.labels):
        return None
    with as_scored(lineage, entry, base):
        return recollect(
            base,
            probe_rows,
            max_length=config.max_length,
            max_completion_length=config.max_completion_length,
            batch_size=config.scoring.batch_size,
            where=where,
        )


def _history(lineage: Lineage) -> list[int]:
    return [0, *(entry["stage"] for entry in lineage.stages)]


def _before(lineage: Lineage, stage: int) -> int:
    """Return the stage whose weights this stage started from."""
    history = _history(lineage)
    return history[history.index(stage) - 1] if lineage.config.mode == "sequential" else 0


def _of_stage(
    lineage: Lineage, by_stage: dict[int, Recollection | None], number: int, learned: int | None
) -> dict[str, Any]:
    """Return all numbers of a stage."""
    history, scores = _history(lineage), _scores(by_stage[number])
    untouched = _scores(by_stage.get(0))["loss"]
    numbers_of_stage: dict[str, Any] = {
        "stage": number,
        "task": lineage.at(number)["task"]["id"] if number else None,
        "loss": scores["loss"],
        "forgetting": numbers.forgetting(scores["loss"], untouched),
        **{name: scores[name] for name in numbers.CHANCE},
        **dict.fromkeys(("lag", "retention", "retainability")),
    }
    lag = history.index(number) - history.index(learned) if learned else -1
    if learned and lag >= 0:
        scores_when_learned = _scores(by_stage[learned])
        numbers_of_stage["lag"] = lag
        numbers_of_stage["retention"] = {
            name: numbers.retention(scores[name], scores_when_learned[name], chance)
            for name, chance in numbers.CHANCE.items()
        }
        numbers_of_stage["retainability"] = _retainability(lineage, by_stage, number, learned)
    return numbers_of_stage


def _scores(recollection: Recollection | None) -> dict[str, float | None]:
    if recollection is None:
        return dict.fromkeys(("loss", *numbers.CHANCE))
    pairs = [
        (row, foil)
        for row, foil in zip(recollection.rows, recollection.foils, strict=True)
        if foil is not None
    ]
    recalled = [score for score in recollection.recalled if score is not None]
    return {
        "loss": numbers.mean_loss(
            [row.log_p for row in recollection.rows], [row.tokens for row in recollection.rows]
        ),
        "recognition": numbers.recognition(
            [row.mean for row, _ in pairs], [foil.mean for _, foil in pairs]
        ),
        "recall": fmean(recalled) if recalled else None,
    }


def _effectivity(
    lineage: Lineage, by_stage: dict[int, Recollection | None], learned: int | None
) -> dict[str, Any] | None:
    if not learned:
        return None
    before, after = _log_p(by_stage[_before(lineage, learned)]), _log_p(by_stage[learned])
    return _spread(numbers.effectivity(before, after)) if before and after else None


def _retainability(
    lineage: Lineage, by_stage: dict[int, Recollection | None], number: int, learned: int
) -> dict[str, Any] | None:
    before = _log_p(by_stage[_before(lineage, learned)])
    after, later = _log_p(by_stage[learned]), _log_p(by_stage[number])
    if not (before and after and later):
        return None
    values = numbers.retainability(before, after, later)
    of_learned_rows = [value for value in values if value is not None]
    not_learned = len(values) - len(of_learned_rows)
    return {**_spread(of_learned_rows), "not_learned": not_learned}


def _log_p(recollection: Recollection | None) -> list[float]:
    return [row.log_p for row in recollection.rows] if recollection else []


def _spread(values: list[float]) -> dict[str, Any]:
    """Return the mean without outliers, its number of rows, and the number of outliers."""
    inliers = numbers.without_outliers(values)
    mean = fmean(inliers) if inliers else None
    return {"mean": mean, "rows": len(inliers), "outliers": len(values) - len(inliers)}
