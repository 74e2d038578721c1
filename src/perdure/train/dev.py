"""Measures dev rows while a task is learned: the curve, early stopping and the best weights.

The dev loss is the task loss without dropout and without what methods add to it: the summed
cross-entropy of all dev rows, divided by the number of tokens that they learn. It does not depend
on the batch size.

Measuring moves no random stream, counts no rows and changes no weights, so a task that is only
measured ends in the same bytes. All that follows from it depends on the curve, which is saved in
every checkpoint, so a task that was stopped and resumed ends in the same bytes, too.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

from perdure.measure.batches import evaluating, feature_batches
from perdure.models.sharded import reshard
from perdure.say import Say
from perdure.seeds import forked
from perdure.train.dev_settings import DevSettings
from perdure.train.losses import count_items


@dataclass(frozen=True)
class Point:
    """What was measured on the dev rows after an optimizer step.

    A loss that was not finite is inf, and such a score -inf. The `score` is None if it was not
    asked for.
    """

    step: int
    loss: float
    score: float | None = None


@dataclass
class DevRows:
    """The dev rows of the tasks that a stage learns.

    Args:
        features: the rows, tokenized as the train rows are.
        score: scores the model on the rows by the tasks' own metrics.
    """

    features: Sequence[dict[str, Any]]
    score: Callable[[], float]


class DevEvaluation(TrainerCallback):
    """Measures the dev rows in a task's Trainer, and acts on what it finds.

    It is the first callback of the Trainer, so that the best weights are there when the methods see
    the end of the training.

    The rows are measured every `eval_steps` steps or at the end of each epoch, and after the last
    step. A method with rounds (`Method.period`) has whole weights only at the end of a round, so a
    measurement that falls inside of one waits for its end.

    Args:
        task: the name of the task.
        rows: the dev rows.
        settings: what follows from a measurement.
        say: called with each line for the user.
    """

    name = "(dev)"  # in the checkpoint; the parentheses keep it apart from methods' names

    def __init__(self, task: str, rows: DevRows, settings: DevSettings, say: Say):
        self.task, self.rows, self.settings, self.say = task, rows, settings, say
        self.curve: list[Point] = []
        self.engine: Any = None  # the ContinualTrainer, which sets it
        self.stopped = False
        self.weights_of = 0  # the step whose weights the task ends with

    # --- when

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = len(train_dataloader)  # type: ignore[arg-type]
        self.steps_per_epoch = -(-batches // args.gradient_accumulation_steps)
        self.period = max((method.period for method in self.engine.methods), default=1)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = self.is_due(args, state)

    def on_epoch_end(self, args, state, control, **kwargs):
        # The last step of the epoch was measured in `on_step_end`: a run that is resumed from a
        # checkpoint of this step has no further `on_epoch_end`.
        control.should_evaluate = False

    def is_due(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether the dev rows are measured after the current step."""
        every = interval(args, state.max_steps, self.steps_per_epoch)
        delay = args.eval_delay
        if args.eval_strategy == "epoch":
            delay *= self.steps_per_epoch
        return is_due(state.global_step, state.max_steps, every, delay=delay, period=self.period)

    # --- what

    def measure(self, step: int) -> dict[str, float]:
        """Measure the model after `step`, and return the metrics under the Trainer's names.

        Under DDP every process measures all rows, so none waits for another, and all of them act
        on what the first one has found.
        """
        engine = self.engine
        with (
            forked(0),
            engine.passes.counting_as(0),
            evaluating(engine.base.model),
            ExitStack() as stack,
        ):
            for method in engine.methods:
                stack.enter_context(method.inference(engine.base.model))
            measured = [self._loss()]
            if self.settings.metric == "score":
                measured.append(self.rows.score())
        reshard(engine.base.model)
        if engine.args.world_size > 1:
            measured = broadcast_object_list(measured)
        worst = (math.inf, -math.inf)
        pairs = zip(measured, worst, strict=False)
        point = Point(step, *(value if math.isfinite(value) else bad for value, bad in pairs))
        self.curve = [*(other for other in self.curve if other.step != step), point]
        metrics = {"eval_loss": point.loss}
        return metrics if point.score is None else {**metrics, "eval_score": point.score}

    def _loss(self) -> float:
        engine, features = self.engine, self.rows.features
        total, items = 0.0, 0
        for indices in feature_batches(engine.base, features, engine.args.eval_batch_size):
            batch = engine._prepare_inputs(engine.collate([features[i] for i in indices]))
            with engine.compute_loss_context_manager():
                loss, _ = engine.task_loss(engine.base.model, batch, num_items=1)
            total += loss.item()
            items += int(count_items(batch, engine.kind))
        return total / items

    # --- what follows

    def on_evaluate(self, args, state, control, **kwargs):
        point, best = self.curve[-1], self.best()
        is_best = best is not None and best.step == point.step
        if args.process_index == 0:
            marked = " (best so far)" if is_best and len(self.curve) > 1 else ""
            self.say(f"{self.task}: step {point.step}: {in_words(point)}{marked}")
        if self.settings.keep_best and is_best:
            self.engine.keep_best(point.step)
        values = [self._value(point) for point in self.curve]
        patience, threshold = self.settings.patience, self.settings.threshold
        is_last = state.global_step >= state.max_steps
        if patience is None or is_last or waited(values, threshold) < patience:
            return
        self.stopped = control.should_training_stop = True
        control.should_save = False  # from a checkpoint of this step, a resumed run would go on
        if args.process_index == 0:
            self.say(
                f"{self.task}: stopped at step {state.global_step} of {state.max_steps}: "
                f"{patience} measurement{'s' if patience > 1 else ''} in a row brought no better "
                f"dev {self.settings.metric}"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.weights_of, best = state.global_step, self.best()
        if not self.settings.keep_best or best is None or best.step == state.global_step:
            return
        self.engine.restore_best(best.step)
        self.weights_of = best.step
        if args.process_index == 0:
            self.say(f"{self.task}: the weights of step {best.step} are kept, {in_words(best)}")

    def best(self) -> Point | None:
        """The best point of the curve; of equal ones the first, None if none is finite."""
        points = [point for point in self.curve if math.isfinite(self._value(point))]
        return min(points, key=self._value, default=None)

    def _value(self, point: Point) -> float:
        """What is compared between points; lower is better."""
        if self.settings.metric == "loss":
            return point.loss
        assert point.score is not None
        return -point.score

    def summary(self) -> dict[str, Any]:
        """The record of the stage: the curve, and what followed from it."""
        best = self.best()
        return {
            "rows": len(self.rows.features),
            "metric": self.settings.metric,
            "curve": [_plain(point) for point in self.curve],
            "best": best.step if best else None,
            "weights_of": self.weights_of,
            "stopped": self.stopped,
        }

    # --- the state in a checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        if not self.curve:
            return {}
        state = {
            "steps": torch.tensor([point.step for point in self.curve]),
            "losses": torch.tensor([point.loss for point in self.curve], dtype=torch.float64),
        }
        if self.settings.metric == "score":
            scores = [point.score for point in self.curve]
            state["scores"] = torch.tensor(scores, dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        columns = (state[key].tolist() for key in ("steps", "losses", "scores") if key in state)
        self.curve = [Point(*values) for values in zip(*columns, strict=True)]


def interval(args: TrainingArguments, max_steps: int, steps_per_epoch: int) -> int:
    """The steps from one measurement to the next, for a strategy other than `no`."""
    if args.eval_strategy == "epoch":
        return steps_per_epoch
    assert args.eval_steps is not None
    return math.ceil(args.eval_steps * (max_steps if args.eval_steps < 1 else 1))


def is_due(step: int, max_steps: int, every: int, delay: float = 0, period: int = 1) -> bool:
    """Whether dev rows are measured after a step.

    They are every `every` steps from `delay` on, at the end of a round of `period` steps, and
    after the last step.
    """
    if step >= max_steps:
        return True
    newest = step // every * every  # the newest step at which a measurement was due
    return step % period == 0 and newest > step - period and newest >= delay


def waited(values: Sequence[float], threshold: float) -> int:
    """How many measurements in a row were no improvement, as EarlyStoppingCallback counts them.

    A value improves on the best one before it if it is lower by more than `threshold`. Infinity
    never does.
    """
    best, count = math.inf, 0
    for value in values:
        improves = value < best and (math.isinf(best) or best - value > threshold)
        count = 0 if improves else count + 1
        best = min(best, value)
    return count


def in_words(point: Point) -> str:
    """A point as text: `dev loss 0.412`, with the score if there is one."""
    score = "" if point.score is None else f", dev score {point.score:.3f}"
    return f"dev loss {point.loss:.4g}{score}"


def _plain(point: Point) -> dict[str, Any]:
    """A point as JSON, in which a value that is not finite is null."""
    values = {"loss": point.loss} | ({} if point.score is None else {"score": point.score})
    plain = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {"step": point.step, **plain}
