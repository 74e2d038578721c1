"""`advance` makes the next stage of a lineage: it plans, learns, scores and commits the stage."""

import datetime
import json
import platform
import re
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from perdure import processes
from perdure.config import Config, deciding_keys
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.disk import remove
from perdure.errors import NotFiniteError, RefusedError
from perdure.lineage.answers import first_answers
from perdure.lineage.dropped import how_to_restore
from perdure.lineage.history import KEPT
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.lineage.scored import scored_before
from perdure.lineage.sources import (
    describe,
    describe_split,
    general_rows,
    reopen,
    with_kept_rows,
    write_kept_rows,
)
from perdure.lineage.work import WorkFolders
from perdure.measure.gate import beyond, open_limits
from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.predictions import Predictions
from perdure.measure.sampling import sampled_rows, shares
from perdure.measure.statistics import can_show_a_loss
from perdure.models.base import Base, BaseInfo
from perdure.models.layout import CARD, MERGE_STATE, METHOD_STATE, SCORES
from perdure.prepare import Plan
from perdure.reporting.verdict import losses
from perdure.say import Say
from perdure.seeds import digest
from perdure.train.checkpoints import complete_checkpoints
from perdure.train.stage import Sample, StagePlan, adopt_stage, learn_stage
from perdure.train.step import rows_of_a_step
from perdure.train.tracking import StageCallback, steps_before
from perdure.verbs.card import StageFacts, model_card
from perdure.verbs.follow import Order
from perdure.verbs.general import measure_general
from perdure.verbs.inputs import memory_of, states_of, training_of
from perdure.verbs.verdict import judge
from perdure.writing import writing


PACKAGES = ("perdure", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")


@dataclass(frozen=True)
class AdoptedWeights:
    """The weights that a stage takes over.

    Args:
        folder: the folder of weights that fit the model (`load_checkpoint`).
        line: what they add to the stage's line of the ledger.
        state: the file of the state of a rule of merging, which becomes a file of the stage.
        base: the model with the weights of the stage before, if it was loaded again.
    """

    folder: Path
    line: Mapping[str, Any] = field(default_factory=dict)
    state: Path | None = None
    base: Base | None = None


@dataclass(frozen=True)
class Adopted:
    """A checkpoint that was trained elsewhere, from which a stage is made.

    Args:
        line: the verb, the method and the checkpoint in the stage's line of the ledger.
        weights: returns the weights, given the model with those of the stage before, and a folder
            for what has to be made of them.
    """

    line: Mapping[str, Any]
    weights: Callable[[Base, Path], AdoptedWeights]


def advance(
    lineage: Lineage,
    plan: Plan,
    learned: Sequence[Task],
    *,
    open_tasks: Mapping[str, Task] | None = None,
    data: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    old: bool = True,
    full: bool = False,
    total: int | None = None,
    position: int = 0,
    adopted: Adopted | None = None,
) -> dict[str, Any]:
    """Learn the last task of `learned` as the next stage, commit it, and return its ledger line.

    In the modes `joint` and `union`, all of `learned` are learned, starting from the base. In
    `union` the other tasks have no stages of their own, and the ledger line lists them under
    `with`.

    Args:
        lineage: the lineage, which the caller has locked.
        plan: the checked plan of the lineage's settings.
        learned: the tasks of the stage, the new one last.
        open_tasks: earlier tasks whose rows are in memory, by id. Other rows are read again.
        data: the folder with the benchmarks' rows.
        callbacks: callbacks of the task's Trainer.
        say: called with each warning.
        old: whether earlier tasks are scored after the stage.
        full: whether they are scored on all of their test rows in spite of `scoring.sample`.
        total: the number of stages of the whole stream, if it is known.
        position: the position of the stage among those of the verb, for other processes.
        adopted: weights that were trained elsewhere, which the stage takes over instead of
            learning.
    """
    config, task = lineage.config, learned[-1]
    torch.set_num_threads(config.threads or torch.get_num_threads())
    stages, number = lineage.stages, lineage.next_stage
    previous = stages[-1] if stages and config.mode == "sequential" else None
    entry, general_memory = _entry(lineage, learned, number, adopted)
    task_id = entry["task"]["id"]
    old_tasks = _old_tasks(lineage, open_tasks or {}, data, say) if old else {}
    key = lineage.decided_by(entry, _judged_on(config, plan, old_tasks, full=full))
    _check_not_refused(lineage, key)
    learned_with = {
        e["id"]: other for e, other in zip(entry.get("with", ()), learned, strict=False)
    }
    base = plan.loader.at(lineage, previous)
    lineage.check_records(stages)  # now, because some are read only after the training
    if previous:
        lineage.file(previous, METHOD_STATE)
    first = first_answers(lineage, stages)
    stage_plan = StagePlan(
        stage=number,
        task=task_id,
        learn=learned,
        score={**old_tasks, **learned_with, task_id: task},
        memory=memory_of(lineage, general_memory, with_old_tasks=previous is not None),
        config=config,
        methods=[] if adopted else plan.methods,
        arguments=plan.arguments(training_of(config, learned)),
        previous=lineage.folder(previous) if previous else None,
        states={} if adopted or not previous else states_of(lineage, plan.methods, say),
        learned=len(stages) if previous else 0,
        has_origin=lineage.origin is not None,
        cells=_unchanged_scores(lineage),
        samples={} if full else _samples(config, old_tasks, first, say),
        before=scored_before(lineage, entry, plan.methods),
        callbacks=callbacks,
        beginning=beginning_of(lineage, base, plan.info),
    )
    if processes.shard_weights():
        plan.loader.forget()
    work, built = _work_folders(lineage, entry)
    remove(built)  # of a run that was stopped
    stage_callbacks = [callback for callback in callbacks if isinstance(callback, StageCallback)]
    for callback in stage_callbacks:
        callback.begin(task_id, len(stages) + 1, total, steps_before(lineage.timings(), number))
    try:
        with writing(built, unfinished=built):
            if adopted:
                weights = adopted.weights(base, work)
                entry |= weights.line
                base = weights.base or base
                seconds, counts = adopt_stage(base, stage_plan, weights.folder, built)
                if weights.state is not None:
                    shutil.move(weights.state, built / MERGE_STATE)
            else:
                if previous and not complete_checkpoints(work):
                    _warn_of_processes(previous, stage_plan, say)
                checkpoints = str(work.absolute())
                processes.tell(
                    Order(position=position, stage=number, task=task_id, checkpoints=checkpoints)
                )
                seconds, counts = learn_stage(base, stage_plan, work, built, say)
                if (count := counts.pop("processes")) > 1:
                    entry["processes"] = count
            write_kept_rows(task, built)
            after = json.loads((built / SCORES).read_text(encoding="utf-8"))["after"]
            entry |= _results(after, config)
            judged = _judged(
                lineage,
                plan,
                stage_plan,
                first=first,
                base=base,
                counts=counts,
                built=built,
                seconds=seconds,
                verb=entry["verb"],
                undone=entry.get("undone"),
                alone=entry.get("alone"),
            )
            reshaped = adopted is None and any(method.reshapes for method in plan.methods)
            _write_card(lineage, base, entry, after, judged, built, reshaped=reshaped)
    except NotFiniteError:
        remove(work)  # a checkpoint in it would lead to the same step again
        raise
    for line in [*losses(judged), *open_limits(config.gate, judged)]:
        say(f"warning: {line}")
    if reasons := beyond(config.gate, judged):
        lineage.refuse(built, entry, reasons, key)
        raise RefusedError(_refused_text(lineage, lineage.ledger[-1], "was refused"))
    lineage.commit(built, entry, {**_timing(seconds), **counts})
    for dropped in lineage.ledger[-1].get("dropped", ()):
        say(f"note: {_dropped_text(lineage, dropped)}")
    for callback in stage_callbacks:
        callback.stage_done(task_id, entry["scores"], lineage.matrix())
    return lineage.ledger[-1]


def _judged(
    lineage: Lineage,
    plan: Plan,
    stage_plan: StagePlan,
    first: Mapping[str, Predictions],
    base: Base,
    counts: Mapping[str, Any],
    built: Path,
    seconds: dict[str, float],
    verb: str,
    undone: int | None,
    alone: float | None,
) -> dict[str, Any]:
    """Measure general ability, judge the stage, and write both into the folder of its files."""
    began = time.perf_counter()
    general = measure_general(
        lineage,
        base,
        stage_plan.methods,
        beginning=stage_plan.beginning,
        counts=counts,
        number=stage_plan.stage,
        built=built,
        tasks=plan.lm_eval,
    )
    seconds["guard"] = time.perf_counter() - began
    return judge(
        lineage,
        built,
        stage_plan.task,
        tasks=stage_plan.score,
        first=first,
        methods=plan.methods,
        general=general,
        verb=verb,
        undone=undone,
        alone=alone,
    )


def _write_card(
    lineage: Lineage,
    base: Base,
    entry: dict[str, Any],
    cells: Mapping[str, Any],
    judged: dict[str, Any],
    built: Path,
    reshaped: bool,
) -> None:
    """Write the card of a stage into the folder of its files."""
    facts = StageFacts(
        cells=cells,
        verdict=judged,
        max_new_tokens=lineage.config.max_completion_length,
        has_template=bool(base.tokenizer.chat_template),
        reshaped=reshaped,
    )
    card = model_card(base.kind, lineage.pin, entry, entry["kind"], place=".", facts=facts)
    (built / CARD).write_text(card, encoding="utf-8")


def _warn_of_processes(previous: dict[str, Any], plan: StagePlan, say: Say) -> None:
    """Warn if the stage before was learned by another number of processes, so in other steps."""
    args, before = plan.arguments, previous.get("processes", 1)
    if args.world_size == before or previous["verb"] != "learn":
        return
    now, then = rows_of_a_step(args), rows_of_a_step(args) * before // args.world_size
    say(
        f"warning: {plan.task}: rows in a step: {now}, learned by {_several(args.world_size)}; the "
        f"stage before: {then}, by {_several(before)}; for as many, change "
        "training.per_device_train_batch_size"
    )


def _several(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def _judged_on(
    config: Config, plan: Plan, old_tasks: Mapping[str, Task | None], full: bool
) -> dict[str, Any]:
    """Return what decides the verdict on a stage beside its line and the settings.

    It has only what is not the same for every stage of a lineage: nothing with the guard's bundled
    rows, and if all test rows of all old tasks are asked as the settings say.
    """
    judged_on: dict[str, Any] = {}
    if full and config.scoring.sample is not None:
        judged_on["full"] = True
    if unscored := [name for name, task in old_tasks.items() if task is None]:
        judged_on["unscored"] = unscored
    if config.guard is not None and config.guard.rows is not None and plan.info.kind != "encoder":
        judged_on["guard"] = digest([asdict(row) for row in read_guard_rows(config.guard.rows)])
    if plan.lm_eval is not None:
        judged_on["lm_eval"] = plan.lm_eval.documents
    return judged_on


def _check_not_refused(lineage: Lineage, key: str) -> None:
    """Check that the gate has not refused this stage before.

    Raises:
        RefusedError: it has; the line gives the reason.
    """
    if refused := lineage.refusal(key):
        done = refused["method"] if refused["method"] in ("merged", "adopted") else "learned"
        done = "taken out" if "undone" in refused else done
        what = f"was refused before, and is not {done} again"
        raise RefusedError(_refused_text(lineage, refused, what))


def _refused_text(lineage: Lineage, refused: dict[str, Any], what: str) -> str:
    """Return the line that says that a stage was refused, why, and where its files are."""
    folder = lineage.path / refused["folder"]
    again = (
        f"and after `perdure set {lineage.path} KEY=VALUE` with another method, rate or gate the "
        "task can be learned again"
    )
    if "undone" in refused:
        again = f"and stage {refused['undone']} is still in it"
    elif "trials" in refused:
        again = (
            f"although the search found weight {refused['weight']:g} within the gate on its "
            "rows; a smaller --weight changes less"
        )
    elif refused["method"] == "merged":
        again = "and `perdure merge` with --search looks for a smaller weight within the gate"
    return (
        f"{refused['task']['id']} {what}: {'; '.join(refused['reasons'])}; the newest stage is "
        f"still {refused['parent']}, {again}; its files: {folder}"
    )


def _dropped_text(lineage: Lineage, folder: str) -> str:
    """Return the line that says that an older stage's whole weights were deleted."""
    entries = lineage.stage_entries.values()
    entry = next(entry for entry in entries if entry.get("folder") == folder)
    return (
        f"the weights of stage {entry['stage']} were deleted, because without an adapter only the "
        f"newest {KEPT} stages keep theirs; "
        f"{how_to_restore(lineage.path, entry['stage'], entry['verb'])}"
    )


def _old_tasks(
    lineage: Lineage, open_tasks: Mapping[str, Task], data: str | Path | None, say: Say
) -> dict[str, Task | None]:
    """Return the tasks of the active stages by id, or None for one that cannot be scored as before.

    That is a task whose test rows or whose own metric are gone or have changed. The task of an
    arrival that was taken out is not among them.
    """
    described = {entry["task"]["id"]: entry["task"] for entry in lineage.standing}
    return {
        task_id: reopen(lineage, description, data, say, opened=open_tasks.get(task_id))
        for task_id, description in described.items()
    }


def _samples(
    config: Config,
    old_tasks: Mapping[str, Task | None],
    first: Mapping[str, Predictions],
    say: Say,
) -> dict[str, Sample]:
    """Return the test rows on which old tasks are scored, for those that are not asked all rows.

    There are none without `scoring.sample`, and in `per_task`, where old scores do not change.
    """
    if config.scoring.sample is None or config.mode == "per_task":
        return {}
    counts = {
        task_id: len(task.test.rows)
        for task_id, task in old_tasks.items()
        if task is not None and task.test is not None
    }
    asked = shares(counts, config.scoring.sample)
    if sum(asked.values()) < sum(counts.values()) and not can_show_a_loss(sum(asked.values())):
        say(
            f"warning: scoring.sample={config.scoring.sample}: so few rows of the old tasks cannot "
            "show a loss; 5 can show a total one, and 100 are a start"
        )
    return {
        task_id: Sample(
            rows=sampled_rows(task_id, count, share=asked[task_id], seed=config.seed),
            of=count,
            first=first.get(task_id),
        )
        for task_id, count in counts.items()
        if asked[task_id] < count
    }


def _results(cells: Mapping[str, dict[str, Any]], config: Config) -> dict[str, Any]:
    """Return what the line of a stage has of its scores: `scores`, and `sampled` if some are."""
    scores = {task_id: cell["score"] for task_id, cell in cells.items()}
    is_sampled = any("of" in cell for cell in cells.values())
    return {"scores": scores, **({"sampled": config.scoring.sample} if is_sampled else {})}


def _unchanged_scores(lineage: Lineage) -> dict[str, Any]:
    """Return the scores that a new stage does not change: in `per_task`, those of all old tasks."""
    if lineage.config.mode != "per_task":
        return {}
    ids = [(entry, entry["task"]["id"]) for entry in lineage.stages]
    return {task_id: lineage.scores(entry)["after"][task_id] for entry, task_id in ids}


def _work_folders(lineage: Lineage, entry: dict[str, Any]) -> WorkFolders:
    """Return the folders of an unfinished stage, which only the same task and settings reuse."""
    config, head = lineage.config, lineage.newest_change.get("previous", "")
    settings = {**config.to_dict(), "training": deciding_keys(config.training)}
    return lineage.work(entry["folder"].rpartition("/")[2], digest(entry, settings, head))


def _entry(
    lineage: Lineage, learned: Sequence[Task], number: int, adopted: Adopted | None
) -> tuple[dict[str, Any], list[Row]]:
    """Return the new stage's line without its results, and the general rows that it names."""
    config, task = lineage.config, learned[-1]
    ids = [e["task"]["id"] for e in lineage.stages]
    others: list[dict[str, Any]] = []
    if config.mode == "union":
        for position, other in enumerate(learned[:-1], start=1):
            ids.append(_unused(other.name, ids, position))
            others.append(describe(lineage, other, ids[-1]))
    name = _unused(task.name, ids, number + len(others))
    folder = f"stages/{number:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', task.name)}"
    entry = {
        "stage": number,
        "verb": "learn",
        "parent": lineage.head,
        "kind": "weights" if config.adapter is None else "adapter",
        "folder": folder,
        "mode": config.mode,
        "method": config.method,
        "task": describe(lineage, with_kept_rows(task, lineage.path / folder), name),
        **({"with": others} if others else {}),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }
    if adopted:
        return {**entry, **adopted.line}, []
    if config.general.file is None:
        return entry, []
    rows = general_rows(config, task, number)
    entry["general"] = describe_split(lineage, rows)
    return entry, list(rows.rows)


def _unused(name: str, ids: Sequence[str], number: int) -> str:
    """Return a task's id: its name, with its number in the stream if another task has the name."""
    while name in ids:
        name = f"{name}@{number}"
    return name


def beginning_of(lineage: Lineage, base: Base, info: BaseInfo) -> Callable[[], Base] | None:
    """Return a function that loads the model of stage 0 again.

    It is None if the model of stage 0 is the current one with its adapter disabled.
    """
    if base.whole or lineage.origin:
        return lambda: base_at(lineage, None, info)
    return None


def _timing(seconds: dict[str, float]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return {"date": now, "host": platform.node(), "peak_memory_kib": peak, "seconds": rounded}
