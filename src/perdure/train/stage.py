"""One stage: learn a task, score the model and write the files, without access to the lineage."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from perdure import processes
from perdure.config import GROUPED, PADDING_FREE, Config
from perdure.data.rows import Row, write_rows
from perdure.data.task import Split, Task
from perdure.data.tokens import packed_features
from perdure.errors import PerdureError
from perdure.measure.evaluate import evaluate, evaluate_together
from perdure.measure.predictions import Predictions, on_common_rows, write_predictions
from perdure.measure.sampling import estimated, sampling_interval
from perdure.models.base import Base
from perdure.models.checkpoints import load_checkpoint
from perdure.models.finite_weights import check_weights
from perdure.models.layout import MEMORY, PREDICTIONS, SCORES
from perdure.models.padding import can_pack
from perdure.models.sharded import Frame
from perdure.models.stage_files import save_weights
from perdure.say import Say
from perdure.seeds import derive
from perdure.train import lifecycle
from perdure.train.arguments import arguments_for_stage
from perdure.train.checkpoints import last_checkpoint
from perdure.train.dev import DevEvaluation, DevRows
from perdure.train.dev_settings import dev_settings, for_task
from perdure.train.memory import Memory, choose
from perdure.train.method import Method, TaskContext
from perdure.train.passes import Passes
from perdure.train.rehearsals import Rehearsals
from perdure.train.sharing import Shares
from perdure.train.surprise import surprise
from perdure.train.trainer import ContinualTrainer, load_state, state_of, write_state


@dataclass(frozen=True)
class Sample:
    """The test rows on which an old task is scored, if these are not all of them.

    Args:
        rows: the indices of the rows, in order; none if the task is not scored.
        of: the number of the task's test rows.
        first: the answers to all rows right after the task was learned, None if they are unknown.
    """

    rows: list[int]
    of: int
    first: Predictions | None = None


@dataclass(frozen=True)
class Before:
    """The new task's scores before training that are known beforehand.

    Args:
        base: the cell of the base.
        cell: the cell of the model that is trained.
        predictions: the answers of the model that is trained, known if `cell` is.
    """

    base: dict[str, Any] | None = None
    cell: dict[str, Any] | None = None
    predictions: Predictions | None = None


@dataclass
class StagePlan:
    """Everything that a stage needs to know.

    Args:
        stage: the number of the stage.
        task: the name of the task.
        learn: the tasks whose rows are learned, the new one last. There is one, but in the modes
            `joint` and `union` there are several.
        score: the tasks to score after training, by name; None if the rows of a task are gone.
        memory: the remembered rows of earlier tasks.
        config: the settings of the lineage.
        methods: the methods, which may have learned other tasks before.
        arguments: the Trainer's arguments; the folder and the seed are replaced by the stage's.
        previous: the folder of the previous stage; None for the first.
        states: by the name of a method, the folder of the newest stage that it took part in.
        learned: how many tasks the model has learned before.
        has_origin: whether the lineage began with an adapter that was trained elsewhere.
        cells: scores after training that are known beforehand, by task.
        samples: the old tasks of which only some test rows are asked, by task.
        before: the new task's scores before training, if a stage has stored them.
        callbacks: further callbacks of the Trainer.
        beginning: loads the model as it was before any task, if this is not the same as the model
            with its adapter disabled.
    """

    stage: int
    task: str
    learn: Sequence[Task]
    score: Mapping[str, Task | None]
    memory: Mapping[str, list[Row]]
    config: Config
    methods: Sequence[Method]
    arguments: TrainingArguments
    previous: Path | None = None
    states: Mapping[str, Path] = field(default_factory=dict)
    learned: int = 0
    has_origin: bool = False
    cells: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    before: Before = field(default_factory=Before)
    callbacks: Sequence[TrainerCallback] = ()
    beginning: Callable[[], Base] | None = None

    @property
    def seed(self) -> int:
        return derive(self.config.seed, "stage", self.stage, self.task)

    @property
    def training_seed(self) -> int:
        """The seed of the Trainer: of the order of the rows, and of dropout."""
        return derive(self.seed, "train")


def learn_stage(
    base: Base, plan: StagePlan, work: Path, stage_folder: Path | None, say: Say
) -> tuple[dict[str, float], dict[str, Any]]:
    """Learn a task, score the model and write the files of the stage.

    Args:
        base: the model, with the weights of the previous stage.
        plan: what the stage learns, and how.
        work: the folder of the checkpoints inside the task. If a stopped run left one there,
            training is resumed from it.
        stage_folder: the folder to create for the stage's files; None to write none (a dry run).
        say: called with each line for the user.

    Returns:
        The seconds of each part, with the loss, and the counts of steps, rows and parameters.
    """
    methods = plan.methods
    args = arguments_for_stage(plan.arguments, work, seed=plan.training_seed)
    base.to(args.device)
    padding_free = _padding_free(base, plan)
    if not padding_free:
        _warn_of_padding(base, plan, say)
    clock = _Clock()
    scores_before, base_scores, before = _scores_before(base, plan)
    clock.lap("score")
    old_labels = None if base.labels is None else len(base.labels)
    train_features, remembered, truncated = _features(base, plan)
    passes, rehearsals = Passes(), Rehearsals(remembered)
    with passes.through(base.model):
        new_memory = _rows_to_remember(
            base, plan, train_features, batch_size=args.per_device_train_batch_size
        )
    _begin_task(base, plan, remembered, old_labels)
    dev = _dev_evaluation(base, plan, say)
    damaged: list[str] = []
    newest = processes.from_main(lambda: str(last_checkpoint(work, damaged.append) or ""))
    resume = Path(newest) if newest else None
    shares = Shares(args.world_size)
    if resume:
        shares.load_state_dict(load_state(shares, resume))
        if processes.shard_weights():
            raise PerdureError(
                f"{plan.task}: was begun without FSDP2, which cannot go on from its checkpoint; go "
                f"on without FSDP2, or delete {work} to begin the task again"
            )
    args = shares.divided(args, plan.task)
    frame = Frame(base.model) if processes.shard_weights() else None
    processes.meet()  # from here on they wait for each other in every step
    for line in damaged:
        say(f"warning: {plan.task}: {line}")
    if resume:
        say(f"{plan.task}: going on from step {resume.name.partition('-')[2]}")
    elif damaged:
        say(f"{plan.task}: beginning again")
    engine = ContinualTrainer(
        base,
        methods,
        train_features,
        args,
        callbacks=plan.callbacks,
        resume=resume,
        passes=passes,
        rehearsals=rehearsals,
        task=plan.task,
        say=say,
        dev=dev,
        padding_free=padding_free,
        shares=shares,
    )
    trainable = sum(p.numel() for p in engine.parameters)
    clock.lap("prepare")
    with passes.through(base.model, args.torch_compile):
        loss = engine.learn()
        lifecycle.end_task(methods, base.model)
    engine.check_end()
    engine.add_up_counts()
    state = state_of(methods)
    steps = engine.state.global_step
    for method in methods:
        del method.engine  # frees the optimizer; the methods stay for the next task
    if frame:
        base.model = frame.filled(base.model)
    clock.lap("train")
    scores_after, after = _scores_after(base, plan)
    clock.lap("score")
    if stage_folder:
        scores = {"after": scores_after, "before": scores_before, "base": base_scores}
        if dev:
            scores["dev"] = dev.summary()
        _write(
            base,
            state,
            new_memory,
            scores={**scores, "truncated": truncated},
            predictions={"before": before, "after": after},
            stage_folder=stage_folder,
        )
    rows_passed = {"forward": passes.forward, "backward": passes.backward}
    counts = {
        "steps": steps,
        "rows": rows_passed,
        "row_tokens": fmean(len(row["input_ids"]) for row in train_features),
        "trainable": trainable,
        "processes": max(shares.count, args.world_size),
    }
    if rehearsals.rows and any(method.rehearses for method in methods):
        counts["rehearsed"] = rehearsals.summary()
    return {**clock.seconds, "loss": loss}, counts


def adopt_stage(
    base: Base, plan: StagePlan, checkpoint: Path, stage_folder: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """Make a stage of a checkpoint that was trained elsewhere: score it and write the files.

    The arguments and the result are those of `learn_stage`. Rows are remembered if the task has
    train rows. No method takes part, so the stage stores no state of any.
    """
    clock = _Clock()
    scores_before, base_scores, before = _scores_before(base, plan)
    clock.lap("score")
    new_memory, truncated = [], 0
    if plan.learn[-1].train.rows:
        train_features, _, truncated = _features(base, plan)
        batch_size = plan.arguments.per_device_train_batch_size
        new_memory = _rows_to_remember(base, plan, train_features, batch_size=batch_size)
    load_checkpoint(base, checkpoint, plan.config.adapter)
    check_weights(base.model, str(checkpoint))
    clock.lap("prepare")
    scores_after, after = _scores_after(base, plan)
    clock.lap("score")
    scores = {"after": scores_after, "before": scores_before, "base": base_scores}
    _write(
        base,
        state_of(plan.methods),
        new_memory,
        scores={**scores, "truncated": truncated},
        predictions={"before": before, "after": after},
        stage_folder=stage_folder,
    )
    return clock.seconds, {}


def _padding_free(base: Base, plan: StagePlan) -> bool:
    """Return whether the rows of a batch are packed end to end.

    Raises:
        PerdureError: they are to be, but the model cannot keep them apart.
    """
    if not for_task(plan.config.training, plan.learn[-1].training).get(PADDING_FREE):
        return False
    if base.kind != "causal":
        raise PerdureError(
            f"training: padding_free: base {base.name!r} is no decoder-only model, and no other "
            f"keeps the rows of one sequence apart; write train_sampling_strategy: {GROUPED} "
            "instead, which leaves little padding"
        )
    if not can_pack(base.model, base.tokenizer, base.limits):
        raise PerdureError(
            f"training: padding_free: base {base.name!r} with its adapter cannot keep the rows of "
            f"one sequence apart; write train_sampling_strategy: {GROUPED} instead, which leaves "
            "little padding"
        )
    return True


def _warn_of_padding(base: Base, plan: StagePlan, say: Say) -> None:
    """Warn at the first stage if padding changes what the model computes for a row."""
    size = plan.arguments.per_device_train_batch_size
    if base.padding.right != "any" and size > 1 and plan.stage == 1:
        say(
            f"warning: padding changes what base {base.name!r} computes for a row; it is scored in "
            f"{'batches of equal length' if base.padding.right == 'equal' else 'batches of one'}; "
            "to learn without padding, set training.per_device_train_batch_size=1 and "
            f"training.gradient_accumulation_steps={size}"
        )


def _begin_task(
    base: Base, plan: StagePlan, remembered: dict[str, list[dict]], labels: int | None
) -> None:
    """Call `begin_task` of all methods; `base` has the model to train afterwards."""
    memory = Memory(remembered, seed=derive(plan.seed, "memory"))

    def context(method: Method) -> TaskContext:
        folder = plan.states.get(method.name)
        return TaskContext(
            task=plan.task,
            stage=plan.has_origin + plan.learned + 1,
            seed=derive(plan.seed, method.name),
            memory=memory,
            state=load_state(method, folder) if folder else {},
            is_newest=folder == plan.previous and (folder is not None or not plan.has_origin),
            labels=labels,
            is_first=plan.previous is None,
        )

    base.model = lifecycle.begin_task(plan.methods, base.model, context)


def score(
    base: Base, task: Task | None, config: Config, methods: Sequence[Method] = ()
) -> tuple[dict[str, Any], Predictions]:
    """A task's cell of R and the model's answers; without test rows, null and no answers."""
    if task is None or task.test is None:
        return {"score": None}, Predictions([], [])
    with scoring_context(base, config, methods):
        cell, predictions = evaluate(
            base,
            task,
            mode=config.scoring.mode,
            batch_size=config.scoring.batch_size,
            max_length=config.max_length,
            max_completion_length=config.max_completion_length,
        )
    return asdict(cell), predictions


def _sampled_scores(
    base: Base, plan: StagePlan
) -> tuple[dict[str, dict[str, Any]], dict[str, Predictions]]:
    """The old tasks' cells of R and the model's answers, from samples of their test rows.

    A cell has the number of the rows that were asked and `of` how many, and a 95 % interval.
    """
    asked = {
        name: replace(task, test=Split(tuple(task.test.rows[row] for row in sample.rows)))
        for name, sample in plan.samples.items()
        if sample.rows and (task := plan.score[name]) is not None and task.test is not None
    }
    scoring = plan.config.scoring
    with scoring_context(base, plan.config, plan.methods):
        results = evaluate_together(
            base,
            asked,
            mode=scoring.mode,
            batch_size=scoring.batch_size,
            max_length=plan.config.max_length,
            max_completion_length=plan.config.max_completion_length,
        )
    cells: dict[str, dict[str, Any]] = {name: {"score": None} for name in plan.samples}
    answers = {}
    for name, (cell, predictions) in results.items():
        cells[name], sample = asdict(cell), plan.samples[name]
        if cell.score is None:
            continue
        answers[name] = replace(predictions, rows=sample.rows, of=sample.of)
        common = on_common_rows(sample.first, answers[name]) if sample.first else None
        if sample.first and common:
            first, now = (predictions.scores for predictions in common)
            cell.score = estimated(now, first, fmean(sample.first.scores))
        interval = sampling_interval(cell.score, cell.rows, sample.of)
        cells[name] |= {"score": cell.score, "of": sample.of}
        cells[name]["interval"] = [interval.low, interval.high]
    return cells, answers


def scoring_context(base: Base, config: Config, methods: Sequence[Method]) -> ExitStack:
    """Enter the contexts in which a stage answers: those of its methods, and the autocast."""
    stack = ExitStack()
    for method in methods:
        stack.enter_context(method.inference(base.model))
    stack.enter_context(_autocast(base, config))
    return stack


def _autocast(base: Base, config: Config) -> torch.autocast:
    """The autocast of the training, for scoring."""
    device = next(base.model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=bool(config.training.get("bf16")))


def _scores_before(
    base: Base, plan: StagePlan
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Predictions]]:
    """The new task's scores for forward transfer: with the model before it learns, and the base.

    The third item has the answers of the model before it learns. What `plan.before` has is not
    measured again.
    """
    if not plan.config.scoring.forward:
        return {}, {}, {}

    def cell(scored: Base) -> dict[str, Any]:
        return {plan.task: score(scored, plan.learn[-1], plan.config)[0]}

    before, predictions = plan.before.cell, plan.before.predictions
    if before is None or predictions is None:
        before, predictions = score(base, plan.learn[-1], plan.config)
    cells, answers = {plan.task: before}, {plan.task: predictions}
    if base.kind == "encoder":  # an encoder has no answers before it has a head
        return cells, {plan.task: {"score": None}}, answers
    if plan.before.base is not None:
        return cells, {plan.task: plan.before.base}, answers
    if plan.beginning is None:
        with base.peft.disable_adapter():
            return cells, cell(base), answers
    return cells, cells if plan.previous is None else cell(plan.beginning()), answers


def _scores_after(base: Base, plan: StagePlan) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """The scores of all tasks after training, and the answers to those that were scored now.

    The scores that are known beforehand come first.
    """
    cells, answers = _sampled_scores(base, plan) if plan.samples else ({}, {})
    scores = {**plan.cells, **cells}
    for name, task in plan.score.items():
        if name not in scores:
            scores[name], answers[name] = score(base, task, plan.config, plan.methods)
    return scores, answers


def _features(base: Base, plan: StagePlan) -> tuple[list[dict], dict[str, list[dict]], int]:
    """The features of new and remembered rows, and how many new rows were truncated.

    The head of an encoder grows first, to have all answers.
    """
    if base.kind == "encoder":
        for task in plan.learn:
            answers = task.answers()
            if answers is None:
                raise PerdureError(
                    f"task {task.name!r}: an encoder needs a closed set of answers; declare the "
                    "task's `options:`"
                )
            base.model.grow(answers, derive(plan.seed, "head"))  # type: ignore[operator]

    new, truncated = [], 0
    for task in plan.learn:
        where = f"{task.name} train"
        task_features, task_truncated = _tokenized(base, plan, task.train.rows, where)
        new += task_features
        truncated += task_truncated
    old = {
        name: _tokenized(base, plan, rows, f"{name} memory")[0]
        for name, rows in plan.memory.items()
    }
    return new, old, truncated


def _tokenized(
    base: Base, plan: StagePlan, rows: Sequence[Row], where: str
) -> tuple[list[dict], int]:
    """The features of some rows, and how many of them were truncated."""
    return packed_features(
        rows,
        base.tokenizer,
        kind=base.kind,
        max_length=plan.config.max_length,
        max_completion_length=plan.config.max_completion_length,
        labels=base.labels,
        where=where,
        mask_history=plan.config.mask_history,
        cache=base.cache,
    )


def _dev_evaluation(base: Base, plan: StagePlan, say: Say) -> DevEvaluation | None:
    """What measures the dev rows of the tasks that are learned; None if they have none."""
    tasks = [task for task in plan.learn if task.dev is not None]
    if not tasks:
        return None
    row_features = [
        row
        for task in tasks
        for row in _tokenized(base, plan, task.dev.rows, f"{task.name} dev")[0]  # type: ignore[union-attr]
    ]

    def mean_score() -> float:
        cells = [score(base, replace(task, test=task.dev), plan.config)[0] for task in tasks]
        return fmean(math.nan if cell["score"] is None else cell["score"] for cell in cells)

    settings = dev_settings(for_task(plan.config.training, plan.learn[-1].training))
    return DevEvaluation(plan.task, DevRows(row_features, mean_score), settings, say)


def _rows_to_remember(
    base: Base, plan: StagePlan, features: list[dict], batch_size: int
) -> list[Row]:
    """Choose the rows of the new task to remember, with the model before it learns the task."""
    memory, task, surprises = plan.config.memory, plan.learn[-1], None
    rows = task.train.rows
    if memory.choose == "surprise" and memory.ratio:
        with _autocast(base, plan.config):  # the features of the new task are the last ones
            surprises = surprise(base, features[len(features) - len(rows) :], batch_size)
    return choose(
        rows,
        ratio=memory.ratio,
        seed=derive(plan.seed, "keep"),
        surprise=surprises,
        options=task.options,
        per_answer=memory.per_answer,
    )


def _write(
    base: Base,
    state: dict[str, Tensor],
    new_memory: list[Row],
    scores: dict[str, Any],
    predictions: Mapping[str, Mapping[str, Predictions]],
    stage_folder: Path,
) -> None:
    """Create the folder of the stage: weights, methods' tensors, memory, scores and answers."""
    stage_folder.mkdir()
    save_weights(base, stage_folder)
    write_state(state, stage_folder)
    write_rows(stage_folder / MEMORY, new_memory)
    text = json.dumps(scores, sort_keys=True, ensure_ascii=False, indent=2)
    (stage_folder / SCORES).write_text(text + "\n", encoding="utf-8")
    write_predictions(stage_folder / PREDICTIONS, predictions)


class _Clock:
    """Adds up the wall time of each part, and the CPU time of all parts but scoring, in seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to the part `name`."""
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        if name != "score":
            self.seconds["cpu"] = self.seconds.get("cpu", 0.0) + cpu - self.cpu
        self.last, self.cpu = now, cpu
