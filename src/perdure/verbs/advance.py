"""The next stage of a lineage, from its plan to its commit."""

import datetime
import json
import platform
import re
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from perdure.config import deciding_keys
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.models.base import Base, BaseInfo
from perdure.models.layout import CARD, GENERAL, SCORES
from perdure.prepare import Plan
from perdure.say import Say
from perdure.seeds import digest
from perdure.train.stage import StagePlan, learn_stage
from perdure.train.tracking import StageCallback, steps_before
from perdure.verbs.card import model_card
from perdure.verbs.sources import describe, describe_split, general_rows, remembered, reopen


PACKAGES = ("perdure", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")


def advance(
    lineage: Lineage,
    plan: Plan,
    learned: Sequence[Task],
    *,
    known: Mapping[str, Task] | None = None,
    data: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    old: bool = True,
    total: int | None = None,
) -> dict[str, Any]:
    """Learn the last of `learned` as the next stage; its ledger line.

    In the modes `joint` and `union` all of `learned` are learned, from the base. In `union` no
    stage before has them, so that the ledger line names the others under `with`.

    `plan` is what the lineage's settings mean. `known` holds old tasks whose rows are at hand, by
    id; the others are read again. `old` tasks are scored after it, or not. `total` is the number of
    tasks of the whole stream.
    """
    config, task, known = lineage.config, learned[-1], known or {}
    torch.set_num_threads(config.threads or torch.get_num_threads())
    stages, number = lineage.stages, lineage.next_stage
    follows = stages[-1] if stages and config.mode == "sequential" else None
    entry, general = _entry(lineage, learned, number)
    name = entry["task"]["id"]
    scored = {
        e["task"]["id"]: known.get(e["task"]["id"]) or reopen(lineage, e["task"], data, say)
        for e in (stages if old else ())
    }
    others = {e["id"]: task for e, task in zip(entry.get("with", ()), learned, strict=False)}
    memory = {e["task"]["id"]: remembered(lineage, e) for e in stages if follows}
    cells = {}
    if config.mode == "per_task":  # old tasks keep their adapters, so they keep their scores
        cells = {e["task"]["id"]: lineage.scores(e)["after"][e["task"]["id"]] for e in stages}
    base = plan.loader.at(lineage, follows)
    stage_plan = StagePlan(
        stage=number,
        task=name,
        learn=learned,
        score={**scored, **others, name: task},
        memory={GENERAL: general, **memory} if general else memory,
        config=config,
        methods=plan.methods,
        arguments=plan.arguments({**config.training, **task.training}),
        previous=lineage.folder(follows) if follows else None,
        learned=len(stages) if follows else 0,
        cells=cells,
        callbacks=callbacks,
        beginning=_beginning(lineage, base, plan.info),
    )
    head = lineage.ledger[-1].get("previous", "")
    decides = {**config.to_dict(), "training": deciding_keys(config.training)}
    key = digest(entry, decides, head)
    work = lineage.work(entry["folder"].rpartition("/")[2], key)
    built = work / "stage"
    shutil.rmtree(built, ignore_errors=True)
    told = [callback for callback in callbacks if isinstance(callback, StageCallback)]
    for callback in told:
        callback.begin(name, len(stages) + 1, total, steps_before(lineage.timings(), number))
    seconds, counts = learn_stage(base, stage_plan, work, built, say)
    after = json.loads((built / SCORES).read_text(encoding="utf-8"))["after"]
    entry["scores"] = {scored: cell["score"] for scored, cell in after.items()}
    card = model_card(base.kind, lineage.pin, entry, entry["kind"], "STAGE")
    (built / CARD).write_text(card, encoding="utf-8")
    lineage.commit(built, entry, {**_timing(seconds), **counts})
    for callback in told:
        callback.stage_done(name, entry["scores"], lineage.matrix())
    return lineage.ledger[-1]


def _entry(
    lineage: Lineage, learned: Sequence[Task], number: int
) -> tuple[dict[str, Any], list[Row]]:
    """The new stage's line as far as it is known beforehand, and the general rows it names."""
    config, task = lineage.config, learned[-1]
    ids = [e["task"]["id"] for e in lineage.stages]
    others: list[dict[str, Any]] = []
    if config.mode == "union":
        for position, other in enumerate(learned[:-1], start=1):
            ids.append(_unused(other.name, ids, position))
            others.append(describe(lineage, other, ids[-1]))
    name = _unused(task.name, ids, number + len(others))
    entry = {
        "stage": number,
        "verb": "learn",
        "parent": lineage.head,
        "kind": "weights" if config.adapter is None else "adapter",
        "folder": f"stages/{number:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', task.name)}",
        "mode": config.mode,
        "method": config.method,
        "task": describe(lineage, task, name),
        **({"with": others} if others else {}),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }
    if config.general.file is None:
        return entry, []
    rows = general_rows(config, task, number)
    entry["general"] = describe_split(lineage, rows)
    return entry, list(rows.rows)


def _unused(name: str, ids: Sequence[str], number: int) -> str:
    """The name of a task, with its number in the stream where another task has the name."""
    return f"{name}@{number}" if name in ids else name


def _beginning(lineage: Lineage, base: Base, info: BaseInfo) -> Callable[[], Base] | None:
    """How to have the model as the lineage began once more, where switching the adapter off won't
    do.
    """
    if base.whole or lineage.origin:
        return lambda: base_at(lineage, None, info)
    return None


def _timing(seconds: dict[str, float]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return {"date": now, "host": platform.node(), "peak_memory_kib": peak, "seconds": rounded}
