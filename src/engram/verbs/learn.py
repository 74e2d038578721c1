"""The verbs that add to a lineage or score it: init, learn, run, evaluate."""

import datetime
import json
import platform
import re
import resource
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from engram.config import Config
from engram.data.stream import load_stream
from engram.data.task import Task
from engram.errors import EngramError, nearest
from engram.learn.methods import make
from engram.learn.stage import Plan, Say, learn_stage, score
from engram.lineage.card import write_card
from engram.lineage.checks import check_settings, check_tasks
from engram.lineage.files import locked
from engram.lineage.lineage import Lineage
from engram.lineage.sources import describe, remembered, reopen
from engram.models import Base, load_base, pin
from engram.seeds import digest
from engram.weights import load_weights


PACKAGES = ("engram", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")


def init(path: str | Path, config: Config) -> Lineage:
    """Make a lineage whose stage 0 is the untouched base.

    Raises:
        EngramError: the folder is not empty, the base is not there, or a setting is wrong.
    """
    check_settings(config)
    Lineage.check_vacant(path)
    load_base(config.base, config.adapter, config.seed)  # weights or an adapter that do not fit
    config.threads = config.threads or torch.get_num_threads()
    return Lineage.create(path, config, pin(config.base))


def learn(
    path: str | Path,
    task: Task,
    data: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Learn one more task; returns the ledger's line of the new stage.

    The same call again goes on where it was stopped; if the newest stage has learned just this
    task from just these rows, there is nothing to do and its line is returned.

    Raises:
        EngramError: not a lineage, a second writer, or rows the model cannot take.
    """
    lineage = Lineage(path)
    if lineage.config.mode == "joint":
        raise EngramError(
            f"{path}: mode joint learns a whole stream; list its tasks in a YAML for `engram run`"
        )
    check_tasks(lineage.config, [task])
    with locked(lineage.path):
        lineage = Lineage(path)
        last = lineage.stages[-1] if lineage.stages else None
        learned = last and (last["task"]["name"], last["task"]["train"]["sha256"])
        if last and learned == (task.name, task.train.sha256):
            say(f"{task.name}: learned already, as stage {last['stage']}")
            return last
        return _learn(lineage, [task], {}, data, callbacks, say)


def run(
    config: Config,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = lambda line: None,
) -> Lineage:
    """Learn a stream: `init`, then a stage for each task; finished stages are kept.

    Raises:
        EngramError: as `init` and `learn`, or other settings than those the lineage was made with.
    """
    if not config.lineage:
        raise EngramError("lineage: missing; say where the run goes, such as lineage=runs/first")
    check_settings(config)
    tasks = load_stream(config)
    path = Path(config.lineage)
    if (path / "engram.yaml").exists():
        lineage = Lineage(path)
        config.threads = config.threads or lineage.config.threads
        lineage.check_unchanged(config, pin(config.base))
        check_tasks(config, tasks[len(lineage.stages) :])
    else:
        Lineage.check_vacant(path)
        check_tasks(config, tasks)
        init(path, config)
    with locked(path):
        lineage = Lineage(path)
        done = lineage.stages
        for entry, task in zip(done, tasks, strict=False):
            if entry["task"]["train"]["sha256"] != task.train.sha256:
                raise EngramError(
                    f"{path}: stage {entry['stage']} learned other rows of {task.name!r} than "
                    "these; take the rows back or give a new folder with lineage=FOLDER"
                )
        known = {entry["task"]["id"]: task for entry, task in zip(done, tasks, strict=False)}
        for i in range(len(done), len(tasks)):
            learned = tasks[: i + 1] if config.mode == "joint" else [tasks[i]]
            old = config.scoring.old == "each" or i + 1 == len(tasks)
            entry = _learn(lineage, learned, known, config.data, callbacks, say, old)
            known[entry["task"]["id"]] = tasks[i]
    return lineage


def evaluate(
    path: str | Path,
    stage: int | None = None,
    tasks: Sequence[str] = (),
    mode: str | None = None,
    data: str | Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Score a stage (the newest by default; 0 is the base) on the tasks learned so far. Reads only.

    Raises:
        EngramError: no such stage or task, or a mode the tasks do not allow.
    """
    lineage = Lineage(path)
    if not lineage.stages:
        raise EngramError(
            f"{path}: nothing was learned yet, so there is nothing to score; "
            f"teach it a task with `engram learn {path} NAME train.jsonl`"
        )
    entry = None if stage == 0 else lineage.at(lineage.head if stage is None else stage)
    ids = [e["task"]["id"] for e in lineage.stages]
    for name in tasks:
        if name not in ids:
            raise EngramError(f"{path}: no task {name!r} was learned; {nearest(name, ids)}")
    config = lineage.config
    if mode:
        config = replace(config, scoring=replace(config.scoring, mode=mode))
    torch.set_num_threads(config.threads or torch.get_num_threads())
    base = _base_at(lineage, entry)
    cells = {}
    for e in lineage.stages:
        name = e["task"]["id"]
        if config.mode == "per_task" and stage is None:  # each task has its own adapter
            base = _base_at(lineage, e)
        if not tasks or name in tasks:
            cells[name] = score(base, reopen(lineage, e, data, say), config, make(config.method))
    return cells


def _learn(
    lineage: Lineage,
    learned: Sequence[Task],
    known: dict[str, Task],
    data: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    old: bool = True,
) -> dict[str, Any]:
    """The next stage, from its plan to its commit; `old` tasks are scored again, or not."""
    config, task = lineage.config, learned[-1]
    torch.set_num_threads(config.threads or torch.get_num_threads())
    stages, number = lineage.stages, lineage.next_stage
    ids = [entry["task"]["id"] for entry in stages]
    name = task.name if task.name not in ids else f"{task.name}@{number}"
    folder = f"stages/{number:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', task.name)}"
    follows = stages[-1] if stages and config.mode == "sequential" else None
    scored = {
        e["task"]["id"]: known.get(e["task"]["id"]) or reopen(lineage, e, data, say)
        for e in (stages if old else ())
    }
    cells = {}
    if config.mode == "per_task":  # old tasks keep their adapters, so they keep their scores
        cells = {e["task"]["id"]: lineage.scores(e)["after"][e["task"]["id"]] for e in stages}
    plan = Plan(
        stage=number,
        task=name,
        learn=learned,
        score={**scored, name: task},
        memory={e["task"]["id"]: remembered(lineage, e) for e in stages if follows},
        config=config,
        previous=lineage.folder(follows) if follows else None,
        cells=cells,
        callbacks=callbacks,
    )
    described = describe(lineage, task, name)
    entry = {
        "stage": number,
        "verb": "learn",
        "parent": lineage.head,
        "kind": "adapter",
        "folder": folder,
        "mode": config.mode,
        "method": config.method,
        "task": described,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }
    head = lineage.ledger[-1].get("previous", "")
    base = _base_at(lineage, follows)
    work = lineage.work(folder.rpartition("/")[2], digest(entry, config.to_dict(), head))
    built = work / "stage"
    shutil.rmtree(built, ignore_errors=True)
    seconds = learn_stage(base, plan, work, built, say)
    entry["scores"] = {k: c["score"] for k, c in _read(built / "scores.json")["after"].items()}
    write_card(built, base, entry)
    lineage.commit(built, entry, _timing(seconds))
    return lineage.ledger[-1]


def _base_at(lineage: Lineage, entry: dict[str, Any] | None) -> Base:
    """The base with a stage's weights; with fresh ones before the first stage."""
    config = lineage.config
    base = load_base(config.base, config.adapter, config.seed)
    if entry:
        load_weights(base, lineage.folder(entry))
    if torch.accelerator.is_available():
        base.model.to(torch.accelerator.current_accelerator())
    return base


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _timing(seconds: dict[str, float]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return {"date": now, "host": platform.node(), "peak_memory_kib": peak, "seconds": rounded}
