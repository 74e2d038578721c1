"""One stage: begin, train, end, score, write its files. Knows nothing of the lineage around it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.data.tokens import features
from perdure.errors import PerdureError
from perdure.measure.evaluate import evaluate
from perdure.models.base import Base
from perdure.models.layout import MEMORY, SCORES
from perdure.models.stage_files import save_weights
from perdure.say import Say
from perdure.seeds import derive
from perdure.train import lifecycle
from perdure.train.arguments import arguments_for_stage
from perdure.train.memory import Memory, choose
from perdure.train.method import Method, TaskContext
from perdure.train.passes import Passes
from perdure.train.rehearsals import Rehearsals
from perdure.train.surprise import surprise
from perdure.train.trainer import ContinualTrainer, last_checkpoint, load_state, save_state


@dataclass
class StagePlan:
    """What a stage is to do.

    `stage` is its number, `learned` how many tasks the model has learned before. `learn` holds the
    tasks whose rows are learned (one; in the modes joint and union several), the new one last.
    `score` holds the tasks to score after it, by id; None where the rows are gone. `methods` begin
    the task anew, whatever they learned before; `arguments` are the Trainer's, but for the folder
    and the seed, which are the stage's. `cells` are scores known beforehand. `beginning` makes the
    model once more as it was before any task, where that is not the model with its adapter switched
    off.
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
    learned: int = 0
    cells: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[TrainerCallback] = ()
    beginning: Callable[[], Base] | None = None

    @property
    def seed(self) -> int:
        return derive(self.config.seed, "stage", self.stage, self.task)


def learn_stage(
    base: Base, plan: StagePlan, work: Path, built: Path | None, say: Say
) -> tuple[dict[str, float], dict[str, Any]]:
    """Learn a task and write the stage's files into `built`; the seconds of each part, the counts.

    `base` holds the weights of the stage before; `work` is where checkpoints inside the task lie,
    and where an earlier, stopped try left them. Without `built` nothing is kept (a dry run).
    """
    methods = plan.methods
    args = arguments_for_stage(plan.arguments, work, derive(plan.seed, "train"))
    base.to(args.device)
    _warn_of_padding(base, plan, say)
    clock = _Clock()
    before, untouched = _scores_before(base, plan)
    clock.lap("score")
    rows, remembered, truncated = _features(base, plan)
    passes = Passes()
    with passes.through(base.model):
        kept = _kept(base, plan, rows, args.per_device_train_batch_size)
    memory, rehearsals = Memory(remembered, derive(plan.seed, "memory")), Rehearsals(remembered)

    def context(method: Method) -> TaskContext:
        state = load_state(method, plan.previous) if plan.previous else {}
        seed = derive(plan.seed, method.name)
        return TaskContext(plan.task, plan.learned + 1, seed, memory, state)

    base.model = lifecycle.begin_task(methods, base.model, context)
    resume = last_checkpoint(work)
    if resume:
        say(f"{plan.task}: going on from step {resume.name.partition('-')[2]}")
    counted = (passes, rehearsals)
    engine = ContinualTrainer(base, methods, rows, args, plan.callbacks, resume, *counted)
    trainable = sum(p.numel() for p in engine.parameters)
    clock.lap("prepare")
    with passes.through(base.model, args.torch_compile):
        loss = engine.learn()
        lifecycle.end_task(methods, base.model)
    clock.lap("train")
    after = dict(plan.cells)
    for name, task in plan.score.items():
        if name not in after:
            after[name], _ = score(base, task, plan.config, methods)
    clock.lap("score")
    if built:
        scores = {"after": after, "before": before, "base": untouched, "truncated": truncated}
        _write(base, methods, plan, kept, scores, built)
    for method in methods:  # which go on to the next task: the optimizer does not
        del method.engine
    rows_passed = {"forward": passes.forward, "backward": passes.backward}
    counts = {"steps": engine.state.global_step, "rows": rows_passed, "trainable": trainable}
    if any(method.rehearses for method in methods) and rehearsals.rows:
        counts["rehearsed"] = rehearsals.summary()
    return {**clock.seconds, "loss": loss}, counts


def _warn_of_padding(base: Base, plan: StagePlan, say: Say) -> None:
    """Say it once if what is learned of a row depends on the rows beside it in a batch."""
    size = plan.arguments.per_device_train_batch_size
    if base.padding.right != "any" and size > 1 and plan.stage == 1:
        say(
            f"warning: padding changes what base {base.name!r} makes of a row; it is scored in "
            f"{'batches of equal length' if base.padding.right == 'equal' else 'batches of one'}, "
            "and learns alike with training.per_device_train_batch_size=1 and "
            f"training.gradient_accumulation_steps={size}"
        )


def score(
    base: Base, task: Task | None, config: Config, methods: Sequence[Method] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A task's cell of R and the model's answers; an unknown cell is null, without answers."""
    if task is None or task.test is None:
        return {"score": None}, []
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method.inference(base.model))
        stack.enter_context(_autocast(base, config))
        cell, answers = evaluate(
            base,
            task,
            config.scoring.mode,
            config.scoring.batch_size,
            config.max_length,
            config.max_completion_length,
        )
    return asdict(cell), answers


def _autocast(base: Base, config: Config) -> torch.autocast:
    """Of the training, for a model that answers."""
    device = next(base.model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=bool(config.training.get("bf16")))


def _scores_before(base: Base, plan: StagePlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """The new task just before it is learned, and on the base: what forward transfer needs."""
    if not plan.config.scoring.forward:
        return {}, {}

    def cell(of: Base) -> dict[str, Any]:
        return {plan.task: score(of, plan.learn[-1], plan.config)[0]}

    before = cell(base)
    if base.kind == "encoder":  # without its head an encoder answers nothing
        return before, {plan.task: {"score": None}}
    if plan.beginning is None:
        with base.peft.disable_adapter():
            return before, cell(base)
    return before, before if plan.previous is None else cell(plan.beginning())


def _features(base: Base, plan: StagePlan) -> tuple[list[dict], dict[str, list[dict]], int]:
    """The new rows and the remembered ones as features; an encoder's head grows first."""
    if base.kind == "encoder":
        for task in plan.learn:
            answers = task.answers()
            if answers is None:
                raise PerdureError(
                    f"task {task.name!r}: an encoder needs a closed set of answers; declare the "
                    "task's `options:`"
                )
            base.model.grow(answers, derive(plan.seed, "head"))  # type: ignore[operator]

    def tokenized(rows: Sequence[Row], where: str) -> tuple[list[dict], int]:
        return features(
            rows,
            base.tokenizer,
            base.kind,
            plan.config.max_length,
            plan.config.max_completion_length,
            base.labels,
            where,
            plan.config.mask_history,
            base.cache,
        )

    new, truncated = [], 0
    for task in plan.learn:
        made, cut = tokenized(task.train.rows, f"{task.name} train")
        new, truncated = new + made, truncated + cut
    old = {name: tokenized(rows, f"{name} memory")[0] for name, rows in plan.memory.items()}
    return new, old, truncated


def _kept(base: Base, plan: StagePlan, features: list[dict], size: int) -> list[Row]:
    """The rows of the new task to remember; what surprises is found before anything is learned."""
    memory, task, surprises = plan.config.memory, plan.learn[-1], None
    new = task.train.rows
    if memory.choose == "surprise" and memory.ratio:
        with _autocast(base, plan.config):
            surprises = surprise(base, features[len(features) - len(new) :], size)
    seed = derive(plan.seed, "keep")
    return choose(new, memory.ratio, seed, surprises, task.options, memory.per_answer)


def _write(
    base: Base,
    methods: Sequence[Method],
    plan: StagePlan,
    kept: list[Row],
    scores: dict[str, Any],
    built: Path,
) -> None:
    built.mkdir()
    save_weights(base, built)
    save_state(methods, built)
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in kept]
    (built / MEMORY).write_text("".join(lines), encoding="utf-8")
    text = json.dumps(scores, sort_keys=True, ensure_ascii=False, indent=2)
    (built / SCORES).write_text(text + "\n", encoding="utf-8")


class _Clock:
    """Adds up the seconds of named parts, and the processor's of all but scoring."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        if name != "score":
            self.seconds["cpu"] = self.seconds.get("cpu", 0.0) + cpu - self.cpu
        self.last, self.cpu = now, cpu
