"""`--dry-run`: what `learn` or `run` would do and cost, found by doing three steps of every task.

Everything is resolved as the verb resolves it; then each task is learned for three optimizer steps
on a throw-away model (the first on its longest rows, with the memory that the tasks before it would
leave), and scored on one batch. Nothing is written to the lineage, nothing is downloaded.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
import torch

from perdure.config import TOGETHER, Config
from perdure.data.rows import Row
from perdure.data.stream import stages_of
from perdure.data.task import Split, Task
from perdure.data.tokens import features
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.models.base import Base, BaseInfo
from perdure.models.layout import GENERAL
from perdure.prepare import Plan, prepare_learn, prepare_run
from perdure.say import Say, silent
from perdure.train.memory import choose
from perdure.train.stage import StagePlan, learn_stage
from perdure.verbs.costs import STEPS, Trial, check_disk, costs
from perdure.verbs.counting import count, length, sample, steps_of
from perdure.verbs.init import try_base
from perdure.verbs.sources import general_rows, remembered


@dataclass
class Start:
    """Where the dry run begins: a model, the rows it remembers, test rows that it was scored on."""

    path: Path
    base: Base
    stage: int = 0
    memory: dict[str, list[Row]] = field(default_factory=dict)
    scored: int = 0


def dry_run(config: Config, say: Say, info: BaseInfo | None = None) -> dict[str, Any]:
    """What `run` would do: of the tasks that are not learned yet, if the lineage is there already.

    `info` is what was read of the base before, if it was.

    Raises:
        PerdureError: whatever would stop the run, now or in its last hour.
    """
    with _offline():
        plan = prepare_run(config, info)
        path = Path(config.lineage or "new-lineage")
        if (path / "lineage.yaml").exists():
            lineage = Lineage(path)
            start, done = _at_the_head(lineage, plan), len(lineage.stages)
        else:
            try_base(plan)
            start, done = Start(path, plan.loader.fresh(config)), 0
        return _report(start, plan, done, say)


def dry_run_of_learn(path: str | Path, task: Task, say: Say) -> dict[str, Any]:
    """What `learn` would do.

    Raises:
        PerdureError: whatever would stop it, now or in its last hour.
    """
    with _offline():
        lineage = Lineage(path)
        plan = prepare_learn(lineage, task)
        return _report(_at_the_head(lineage, plan), plan, 0, say)


def _at_the_head(lineage: Lineage, plan: Plan) -> Start:
    stages, sequential = lineage.stages, lineage.config.mode == "sequential"
    follows = stages[-1] if stages and sequential else None
    return Start(
        lineage.path,
        plan.loader.at(lineage, follows),
        lineage.head,
        {e["task"]["id"]: remembered(lineage, e) for e in stages if follows},
        sum(e["task"]["test"]["rows"] for e in stages if "test" in e["task"]),
    )


def _report(start: Start, plan: Plan, done: int, say: Say) -> dict[str, Any]:
    """Try every task from number `done` on, and add up what they would cost."""
    config, base, tasks = plan.config, start.base, plan.tasks
    for line in plan.notes:
        say(line)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    memory, trials = dict(start.memory), []
    for number, learned in enumerate(stages_of(tasks, config.mode)[done:], start=done + 1):
        task = learned[-1]
        general = general_rows(config, task, number).rows if config.general.file else ()
        known = {GENERAL: list(general), **memory} if general else memory
        trial = _three_steps(base, plan, learned, known, number)
        trials.append(trial)
        if config.mode == "sequential":
            memory[task.name] = choose(
                task.train.rows,
                config.memory.ratio,
                seed=0,
                options=task.options,
                per_answer=config.memory.per_answer,
            )
    total = costs(plan, base, trials, start.scored)
    check_disk(start.path, total)
    return {
        "lineage": str(start.path),
        "base": base.name,
        "kind": base.kind,
        "method": config.method,
        "mode": config.mode,
        "device": str(next(base.model.parameters()).device),
        "threads": torch.get_num_threads(),
        "tasks": [asdict(trial) for trial in trials],
        **total,
    }


def _three_steps(
    base: Base, plan: Plan, learned: Sequence[Task], memory: dict[str, list[Row]], number: int
) -> Trial:
    """Learn the longest and some other rows of a task, and score a batch of it."""
    config, task = plan.config, learned[-1]
    rows = [row for one in learned for row in one.train.rows]
    task_features, truncated = _features(config, base, learned)
    training = {**config.training, **task.training}
    args = plan.arguments(training)
    each = args.per_device_train_batch_size * args.gradient_accumulation_steps
    chosen = sample(rows, [length(feature, base.kind) for feature in task_features], each, STEPS)
    trial_keys = {"max_steps": STEPS, "train_sampling_strategy": "sequential", "report_to": "none"}
    tests = task.test and replace(task.test, rows=task.test.rows[: config.scoring.batch_size])
    short = replace(
        task,
        train=Split(tuple(chosen)),
        test=tests,
        options=task.answers(),
    )
    if config.mode in TOGETHER and base.kind == "encoder":  # the head knows the labels of them all
        short = replace(short, options=_answers(learned))
    quick = replace(config, scoring=replace(config.scoring, forward=False))
    counted = count(task_features, truncated, base.kind)
    trial = Trial(task.name, counted, steps_of(args, len(rows)), len(memory))
    named = {task.name: short}
    stage_plan = StagePlan(
        stage=number,
        task=task.name,
        learn=[short],
        score=named,
        memory=memory,
        config=quick,
        methods=plan.methods,
        arguments=plan.arguments({**training, **trial_keys}, checkpoint_every=0),
        learned=number - 1,
        callbacks=[trial],
    )
    with tempfile.TemporaryDirectory() as work:
        try:
            seconds, _ = learn_stage(base, stage_plan, Path(work), None, silent)
        except torch.OutOfMemoryError as error:
            raise PerdureError(
                f"task {task.name!r}: a batch of its longest rows ({trial.count.longest} tokens) "
                "does not fit into memory; lower per_device_train_batch_size or max_length"
            ) from error
    scored = learned if config.mode == "union" else [task]
    trial.tested(sum(len(one.test.rows) for one in scored if one.test), tests, seconds["score"])
    return trial


def _features(config: Config, base: Base, learned: Sequence[Task]) -> tuple[list, int]:
    all_features, truncated = [], 0
    limits = (config.max_length, config.max_completion_length)
    for task in learned:
        labels = list(task.answers() or ()) if base.kind == "encoder" else None
        task_features, cut = features(
            task.train.rows,
            base.tokenizer,
            base.kind,
            *limits,
            labels,
            f"{task.name} train",
            config.mask_history,
            base.cache,
        )
        all_features, truncated = all_features + task_features, truncated + cut
    return all_features, truncated


def _answers(tasks: Sequence[Task]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for task in tasks for label in task.answers() or ()))


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries as with HF_HUB_OFFLINE=1: what is not here already is an error."""
    hub: Any = huggingface_hub.constants
    rows: Any = datasets.config
    before = hub.HF_HUB_OFFLINE, rows.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = rows.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, rows.HF_HUB_OFFLINE = before
