"""Dev rows: what is measured while a task is learned, and what follows from it."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from perdure import methods
from perdure.say import silent
from perdure.train import lifecycle
from perdure.train.checkpoints import last_checkpoint
from perdure.train.dev import DevEvaluation, DevRows, Point, waited
from perdure.train.dev_settings import DevSettings
from tiny import KINDS
from train.engine import (
    Stop,
    Stopped,
    dev_of,
    engine,
    same,
    scripted,
    tiny_base,
    weights,
    whole,
)


pytestmark = pytest.mark.own
ROUNDS = ["replay", {"recurrent_kif": {"inner_steps": 3}}]


def end(trainer):
    """The weights with which the stage ends, and what the methods store then."""
    lifecycle.end_task(trainer.methods, trainer.base.model)
    states = [{k: t.clone() for k, t in m.state_dict().items()} for m in trainer.methods]
    return weights(trainer.base), states


# --- what is measured


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_the_tokens_of_all_rows(kind, tmp_path):
    base = tiny_base(kind, 0.3)
    dev = dev_of(base, rows=7)
    trainer = engine(base, "sequential", tmp_path, dev=dev, per_device_eval_batch_size=3)
    total, items = 0.0, 0
    base.model.eval()
    for row in dev.rows.features:
        batch = trainer.collate([row])
        labels = batch.pop("labels")
        if kind == "seq2seq":
            batch["decoder_input_ids"] = base.peft.prepare_decoder_input_ids_from_labels(labels)
        logits = base.model(**batch).logits
        if kind == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        total += cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum").item()
        items += int((labels != -100).sum())
    base.model.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / items, rel=1e-5)
    assert base.model.training
    assert trainer.passes.forward == 0


@pytest.mark.parametrize("method", ["sequential", ROUNDS], ids=str)
def test_measuring_changes_nothing(method, tmp_path):
    """LoRA's dropout and the order of the rows draw from the streams that must not move."""
    ends = []
    for measured in (False, True):
        base = tiny_base("causal", 0.1)
        dev = dev_of(base) if measured else None
        keys = {"eval_strategy": "steps", "eval_steps": 3} if measured else {}
        trainer = engine(base, method, tmp_path / str(measured), dev=dev, **keys)
        trainer.learn()
        ends.append(end(trainer))
    assert [point.step for point in dev.curve] == [3, 6, 9, 10]
    assert same(ends[0][0], ends[1][0])
    assert all(same(*states) for states in zip(ends[0][1], ends[1][1], strict=True))


# --- when


def due(steps: int, every: float, period: int = 1, delay: float = 0, epoch: int = 0) -> list[int]:
    """The steps of a task of `steps` at which dev rows are measured."""
    dev = DevEvaluation("colour", DevRows([], float), DevSettings(), silent)
    dev.period, dev.steps_per_epoch = period, epoch
    strategy = "epoch" if epoch else "steps"
    args = SimpleNamespace(eval_strategy=strategy, eval_steps=every, eval_delay=delay)
    state = TrainerState(max_steps=steps)
    measured = []
    for state.global_step in range(1, steps + 1):
        if dev.is_due(args, state):  # type: ignore[arg-type]
            measured.append(state.global_step)
    return measured


def test_rows_are_measured_at_their_steps_and_after_the_last_one():
    assert due(10, 4) == [4, 8, 10]
    assert due(12, 4) == [4, 8, 12]
    assert due(10, 4, delay=5) == [8, 10]
    assert due(10, 0.25) == [3, 6, 9, 10]
    assert due(10, 0, epoch=4) == [4, 8, 10]
    assert due(12, 0, epoch=4, delay=2) == [8, 12]


def test_a_measurement_inside_a_round_waits_for_its_end():
    assert due(75, 10, period=8) == [16, 24, 32, 40, 56, 64, 72, 75]
    assert due(16, 0, period=8, epoch=5) == [8, 16]
    assert due(6, 2, period=8) == [6]
    assert due(24, 1, period=8) == [8, 16, 24]


def test_epochs_end_in_the_trainer_where_they_are_expected(tmp_path):
    """40 rows in batches of 4, two a step: 5 steps an epoch."""
    base = tiny_base("causal")
    dev = dev_of(base)
    keys = {"gradient_accumulation_steps": 2, "num_train_epochs": 1.5, "eval_strategy": "epoch"}
    trainer = engine(base, "sequential", tmp_path, dev=dev, **keys)
    trainer.learn()
    assert [point.step for point in dev.curve] == [5, 8]
    logged = [log["step"] for log in trainer.state.log_history if "eval_loss" in log]
    assert logged == [5, 8]
    assert trainer.state.best_metric == min(point.loss for point in dev.curve)


# --- what follows


def test_patience_is_counted_as_transformers_counts_it():
    draw = random.Random(0)
    for threshold in (0.0, 0.1):
        values = [round(draw.uniform(0, 1), 1) + 0.01 for _ in range(60)]
        theirs = EarlyStoppingCallback(99, threshold)
        args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
        state, counts = TrainerState(), []
        for value in values:
            theirs.on_evaluate(args, state, TrainerControl(), {"eval_loss": value})  # type: ignore[arg-type]
            counts.append(theirs.early_stopping_patience_counter)
            state.best_metric = min(value, state.best_metric or math.inf)
        assert [waited(values[: i + 1], threshold) for i in range(60)] == counts
    assert waited([1.0, math.inf, math.inf], 0) == 2
    assert waited([math.inf, 1.0], 0) == 0


# After three steps the loss is lowest; two measurements later the task ends.
LOSSES = {3: 1.0, 6: 2.0, 9: 1.5, 10: 1.2, 12: 1.1, 15: 1.1}
ALWAYS = ("sequential", "replay", "recurrent_kif", "si", "self_replay", "slao")
BEST = [
    pytest.param(
        {name: {"inner_steps": 3} if name == "recurrent_kif" else {}},
        marks=() if name in ALWAYS else pytest.mark.slow,
    )
    for name in methods.names()
]


@pytest.mark.parametrize("method", BEST, ids=str)
def test_the_best_weights_are_the_stage_of_a_task_that_ended_there(method, tmp_path):
    """Early stopping ends it at step 9, and the weights and tensors of step 3 are restored."""
    lines, keys = [], {"eval_strategy": "steps", "eval_steps": 3}
    base = tiny_base("causal", 0.1, whole(method))
    dev = scripted(dev_of(base, lines.append, keep_best=True, patience=2), LOSSES)
    trainer = engine(base, method, tmp_path / "best", rows=60, dev=dev, **keys)
    trainer.learn()
    assert (trainer.state.global_step, dev.stopped, dev.weights_of) == (9, True, 3)
    assert "stopped at step 9 of 15" in lines[-2]
    assert "the weights of step 3 are kept" in lines[-1]
    best = end(trainer)
    other = tiny_base("causal", 0.1, whole(method))
    stopping = scripted(dev_of(other, patience=1), {3: math.nan})
    reference = engine(other, method, tmp_path / "ended", rows=60, dev=stopping, **keys)
    reference.learn()
    assert reference.state.global_step == 3
    ended = end(reference)
    assert same(best[0], ended[0])
    assert all(same(*states) for states in zip(best[1], ended[1], strict=True))


def test_nothing_is_kept_of_a_loss_that_is_not_finite(tmp_path):
    base = tiny_base("causal")
    dev = scripted(dev_of(base, keep_best=True), {5: math.inf, 10: math.nan})
    keys = {"eval_strategy": "steps", "eval_steps": 5}
    engine(base, "sequential", tmp_path, dev=dev, **keys).learn()
    assert dev.summary() == {
        "rows": 12,
        "metric": "loss",
        "curve": [{"step": 5, "loss": None}, {"step": 10, "loss": None}],
        "best": None,
        "weights_of": 10,
        "stopped": False,
    }


def test_a_score_is_better_if_it_is_higher():
    dev = DevEvaluation("colour", DevRows([], float), DevSettings(metric="score"), silent)
    dev.curve = [Point(1, 3.0, 0.25), Point(2, 1.0, 0.5), Point(3, 2.0, 0.5)]
    assert dev.best() == Point(2, 1.0, 0.5)
    copy = DevEvaluation("colour", DevRows([], float), DevSettings(metric="score"), silent)
    copy.load_state_dict(dev.state_dict())
    assert copy.curve == dev.curve


# --- stopped and resumed


@pytest.mark.parametrize(("at", "every"), [(4, 2), (7, 3), (14, 4)])
def test_a_stopped_run_ends_in_the_same_bytes(at, every, tmp_path):
    """The best step may lie before the checkpoint, at it or after it."""
    losses = {3: 2.0, 6: 1.0, 9: 0.5, 12: 3.0, 15: 0.6}
    keys = {"eval_strategy": "steps", "eval_steps": 3, "rows": 60, "checkpoint_every": every}

    def trained(work, callbacks=(), resume=None):
        base = tiny_base("causal", 0.1)
        dev = scripted(dev_of(base, keep_best=True), losses)
        trainer = engine(base, ROUNDS, work, dev=dev, callbacks=callbacks, resume=resume, **keys)
        trainer.learn()
        return end(trainer), dev.summary()

    (straight, states), summary = trained(tmp_path / "a")
    assert summary["weights_of"] == 9
    with pytest.raises(Stopped):
        trained(tmp_path / "b", [Stop(at)])
    checkpoint = last_checkpoint(tmp_path / "b")
    (resumed, resumed_states), again = trained(tmp_path / "b", resume=checkpoint)
    assert again == summary
    assert same(straight, resumed)
    assert all(same(*pair) for pair in zip(states, resumed_states, strict=True))


def test_few_best_weights_are_kept_and_those_of_the_newest_checkpoint(tmp_path):
    """The loss falls all the time; from checkpoint 4 a run would go back to step 4 at best."""
    base = tiny_base("causal")
    dev = scripted(dev_of(base, keep_best=True), {step: 10.0 - step for step in range(1, 8)})
    keys = {"eval_strategy": "steps", "eval_steps": 1, "checkpoint_every": 4}
    with pytest.raises(Stopped):
        engine(base, "sequential", tmp_path, dev=dev, callbacks=[Stop(7)], **keys).learn()
    assert sorted(folder.name for folder in tmp_path.glob("best-*")) == ["best-4", "best-7"]


def test_a_run_that_was_stopped_after_early_stopping_stops_again(tmp_path):
    """There is no checkpoint of the last step, from which it would go on."""
    losses = {3: 1.0, 6: 2.0, 9: 2.0, 12: 0.1, 15: 0.1}
    keys = {"eval_strategy": "steps", "eval_steps": 3, "rows": 60, "checkpoint_every": 3}
    ends = []
    for resume in (None, "newest"):
        base = tiny_base("causal", 0.1)
        dev = scripted(dev_of(base, patience=1), losses)
        resume = resume and last_checkpoint(tmp_path)
        trainer = engine(base, "sequential", tmp_path, dev=dev, resume=resume, **keys)
        trainer.learn()
        ends.append((trainer.state.global_step, weights(base)))
    assert ends[0][0] == ends[1][0] == 6
    assert torch.equal(*(next(iter(values.values())) for _, values in ends))
