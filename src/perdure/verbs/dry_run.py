"""`--dry-run` estimates what `learn` or `run` would cost, from three steps of every task.

All checks are those of the real verb. Then each task is learned for three optimizer steps on a
model that is thrown away, with the memory that the earlier tasks would leave, and is scored on one
batch. The first step has the task's longest rows. Nothing is written to the lineage, and nothing is
downloaded.
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

from perdure.config import GROUPED, PADDING_FREE, TOGETHER, Config
from perdure.data.rows import Row
from perdure.data.stream import stages_of
from perdure.data.task import Split, Task
from perdure.data.tokens import features
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import general_rows, remembered
from perdure.models.base import Base, BaseInfo
from perdure.models.layout import GENERAL
from perdure.prepare import Plan, prepare_learn, prepare_run
from perdure.prepare.merged import experts_of, learned_experts, merged_of, read_merge
from perdure.say import Say, silent
from perdure.train.arguments import arguments_for_stage
from perdure.train.dev import interval, is_due
from perdure.train.dev_settings import for_task, with_strategy, without_dev
from perdure.train.grouping import length
from perdure.train.memory import choose
from perdure.train.stage import StagePlan, learn_stage
from perdure.verbs.costs import STEPS, TriedTask, check_disk, costs
from perdure.verbs.counting import count, padding, sample, steps_an_epoch, steps_of
from perdure.verbs.init import try_base
from perdure.verbs.learn import has_learned


@dataclass
class Start:
    """The state in which a dry run begins.

    Args:
        path: the folder of the lineage.
        base: the model.
        stage: the number of the newest stage.
        memory: the remembered rows, by task.
        scored: the number of test rows of the tasks learned so far.
    """

    path: Path
    base: Base
    stage: int = 0
    memory: dict[str, list[Row]] = field(default_factory=dict)
    scored: int = 0


def dry_run(config: Config, say: Say, info: BaseInfo | None = None) -> dict[str, Any]:
    """Estimate `run`. If the lineage exists, only the tasks not yet learned count.

    `info` is the result of `read_base` for the base, if there is one already.

    Raises:
        PerdureError: something would stop the run, at its start or later.
    """
    if config.merge is not None:
        say("merge: only the learning of the experts is estimated; to merge them takes little more")
        if read_merge(config.merge).experts is not None:
            return _of_learned_experts(config, say, info)
        config = experts_of(config)
    with _offline():
        plan = prepare_run(config, info)
        path = Path(config.lineage or "new-lineage")
        if (path / "lineage.yaml").exists():
            lineage = Lineage(path)
            start, done = _at_the_head(lineage, plan), len(lineage.stages)
        else:
            try_base(plan, say=say)
            start, done = Start(path, plan.loader.fresh(config)), 0
        return _report(start, plan, done, say)


def _of_learned_experts(config: Config, say: Say, info: BaseInfo | None) -> dict[str, Any]:
    """Check a run that merges experts that were learned before; there is nothing to learn."""
    with _offline():
        plan = prepare_run(merged_of(config), info)
        experts = replace(experts_of(config), max_length=plan.config.max_length)
        learned_experts(experts, plan.tasks, plan.info)
        start = Start(Path(config.lineage or "new-lineage"), plan.loader.fresh(plan.config))
        return _report(start, plan, len(plan.tasks), say)


def dry_run_of_learn(path: str | Path, task: Task, say: Say) -> dict[str, Any]:
    """Estimate `learn`.

    Raises:
        PerdureError: something would stop it, at its start or later.
    """
    with _offline():
        lineage = Lineage(path)
        plan = prepare_learn(lineage, task)
        is_done = bool(lineage.stages) and has_learned(lineage.stages[-1]["task"], plan.tasks[0])
        if is_done:
            say(f"{plan.tasks[0].name}: already learned, as stage {lineage.head}")
        return _report(_at_the_head(lineage, plan), plan, int(is_done), say)


def _at_the_head(lineage: Lineage, plan: Plan) -> Start:
    stages, sequential = lineage.stages, lineage.config.mode == "sequential"
    standing = lineage.standing
    previous = stages[-1] if stages and sequential else None
    return Start(
        lineage.path,
        plan.loader.at(lineage, previous),
        stage=lineage.head,
        memory={e["task"]["id"]: remembered(lineage, e) for e in standing if previous},
        scored=sum(e["task"]["test"]["rows"] for e in standing if "test" in e["task"]),
    )


def _report(start: Start, plan: Plan, done: int, say: Say) -> dict[str, Any]:
    """Run a trial of every task after the first `done`, and add up the estimated costs."""
    config, base, tasks = plan.config, start.base, plan.tasks
    for line in plan.notes:
        say(line)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    memory, trials = dict(start.memory), []
    for number, learned in enumerate(stages_of(tasks, config.mode)[done:], start=done + 1):
        task = learned[-1]
        general = general_rows(config, task, number).rows if config.general.file else ()
        rehearsed = {GENERAL: list(general), **memory} if general else memory
        trial = _three_steps(base, plan, learned, rehearsed, number)
        trials.append(trial)
        if config.mode == "sequential":
            memory[task.name] = choose(
                task.train.rows,
                config.memory.ratio,
                seed=0,
                options=task.options,
                per_answer=config.memory.per_answer,
            )
    total = costs(plan, base, trials, scored=start.scored, learned=len(start.memory))
    check_disk(start.path, total)
    return {
        "lineage": str(start.path),
        "base": base.name,
        "kind": base.kind,
        "method": config.method,
        "mode": config.mode,
        "guarded": config.guard is not None and base.kind != "encoder",
        "device": str(next(base.model.parameters()).device),
        "threads": torch.get_num_threads(),
        "tasks": [asdict(trial) for trial in trials],
        **total,
    }


def _three_steps(
    base: Base, plan: Plan, learned: Sequence[Task], memory: dict[str, list[Row]], number: int
) -> TriedTask:
    """Learn the longest and some other rows of a task, and score one batch of it."""
    config, task = plan.config, learned[-1]
    rows = [row for learned_task in learned for row in learned_task.train.rows]
    task_features, truncated = _features(config, base, learned)
    training = without_dev(for_task(config.training, task.training))
    args = plan.arguments(training)
    rows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    lengths = [length(feature, base.kind) for feature in task_features]
    trial_rows = sample(rows, lengths, rows_a_step, STEPS)
    trial_keys = {"max_steps": STEPS, "train_sampling_strategy": "sequential", "report_to": "none"}
    tests = task.test and replace(task.test, rows=task.test.rows[: config.scoring.batch_size])
    short = replace(
        task,
        train=Split(tuple(trial_rows)),
        dev=None,
        test=tests,
        options=task.answers(),
    )
    if config.mode in TOGETHER and base.kind == "encoder":  # the head has the labels of all tasks
        short = replace(short, options=_answers(learned))
    quick = replace(config, scoring=replace(config.scoring, forward=False))
    counted = count(task_features, truncated, base.kind)
    steps = steps_of(args, len(rows))
    trial = TriedTask(task.name, counted, steps, len(memory), rows_a_step)
    trial.dev_rows = sum(len(other.dev.rows) for other in learned if other.dev)
    trial.measurements = _measurements(plan, learned, steps) if trial.dev_rows else 0
    stage_plan = StagePlan(
        stage=number,
        task=task.name,
        learn=[short],
        score={task.name: short},
        memory=memory,
        config=quick,
        methods=plan.methods,
        arguments=plan.arguments({**training, **trial_keys}, checkpoint_every=0),
        learned=number - 1,
        callbacks=[trial],
    )
    if not training.get(PADDING_FREE):
        seeded = arguments_for_stage(args, Path(str(args.output_dir)), stage_plan.training_seed)
        strategy = args.train_sampling_strategy
        trial.padding = round(padding(task_features, seeded, base.kind, strategy), 3)
        trial.padding_if_grouped = round(padding(task_features, seeded, base.kind, GROUPED), 3)
    with tempfile.TemporaryDirectory() as work:
        try:
            seconds, _ = learn_stage(base, stage_plan, Path(work), None, silent)
        except torch.OutOfMemoryError as error:
            raise PerdureError(
                f"task {task.name!r}: a batch of its longest rows ({trial.count.longest} tokens) "
                "does not fit into memory; lower per_device_train_batch_size or max_length"
            ) from error
    scored = learned if config.mode == "union" else [task]
    test_rows = sum(len(scored_task.test.rows) for scored_task in scored if scored_task.test)
    trial.tested(test_rows, tests, seconds["score"])
    return trial


def _measurements(plan: Plan, learned: Sequence[Task], steps: int) -> int:
    """Count how often a stage measures its dev rows, if it does not end early."""
    training = for_task(plan.config.training, learned[-1].training)
    args = plan.arguments(with_strategy(training, has_rows=True))
    row_count = sum(len(task.train.rows) for task in learned)
    steps_per_epoch = steps_an_epoch(args, row_count)
    every = interval(args, steps, steps_per_epoch)
    delay = args.eval_delay * (steps_per_epoch if args.eval_strategy == "epoch" else 1)
    period = max(method.period for method in plan.methods)
    return sum(is_due(i, steps, every, delay=delay, period=period) for i in range(1, steps + 1))


def _features(config: Config, base: Base, learned: Sequence[Task]) -> tuple[list, int]:
    all_features, truncated = [], 0
    for task in learned:
        labels = list(task.answers() or ()) if base.kind == "encoder" else None
        task_features, cut = features(
            task.train.rows,
            base.tokenizer,
            kind=base.kind,
            max_length=config.max_length,
            max_completion_length=config.max_completion_length,
            labels=labels,
            where=f"{task.name} train",
            mask_history=config.mask_history,
            cache=base.cache,
        )
        all_features, truncated = all_features + task_features, truncated + cut
    return all_features, truncated


def _answers(tasks: Sequence[Task]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for task in tasks for label in task.answers() or ()))


@contextmanager
def _offline() -> Iterator[None]:
    """Put the hub's libraries offline, as HF_HUB_OFFLINE=1 does, for a block."""
    hub: Any = huggingface_hub.constants
    rows: Any = datasets.config
    before = hub.HF_HUB_OFFLINE, rows.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = rows.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, rows.HF_HUB_OFFLINE = before
