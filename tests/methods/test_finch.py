"""FINCH: the rate of each step, from its loss."""

import math

import pytest
from transformers import TrainerCallback

from perdure.errors import PerdureError
from perdure.methods.finch import FINCH
from tiny import KINDS
from train.engine import engine, same, tiny_base, weights


pytestmark = pytest.mark.own


class Rates(TrainerCallback):
    """The rates of the steps; `given` replaces them, as a plain run would have them."""

    def __init__(self, given=None):
        self.given, self.rates, self.scheduled, self.between = given, [], [], []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.scheduled.append(optimizer.param_groups[0]["lr"])

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups if self.given else ():
            group["lr"] = self.given[len(self.rates)]
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.between.append((optimizer.param_groups[0]["lr"], lr_scheduler.get_last_lr()[0]))


def run(kind, method, work, **settings):
    """The trainer after a task, its rates, and the task loss of each step."""
    rates, losses = Rates(), []
    trainer = engine(tiny_base(kind, 0.1), method, work, callbacks=[rates], **settings)
    original = trainer.compute_loss

    def compute(*args, **kwargs):
        loss = original(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.compute_loss = compute
    trainer.learn()
    size = len(losses) // len(rates.rates)
    return trainer, rates, [sum(losses[i : i + size]) for i in range(0, len(losses), size)]


def expected(rates, losses, loss=1.0, most=2.0, beta=0.9):
    """The paper's rule, step by step."""
    mean, found = losses[0], []
    for scheduled, current in zip(rates.scheduled, losses, strict=True):
        mean = beta * mean + (1 - beta) * current
        found.append(scheduled * min(most, math.sqrt(loss / (mean + 1e-8))))
    return found


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_has_the_rate_of_its_smoothed_loss(kind, accumulated, tmp_path):
    _, rates, losses = run(kind, "finch", tmp_path, gradient_accumulation_steps=accumulated)
    assert len(losses) == 10 // accumulated
    assert rates.rates == pytest.approx(expected(rates, losses), rel=1e-5)
    assert rates.rates != rates.scheduled


def test_its_keywords_are_those_of_the_rule(tmp_path):
    keywords = {"loss": 4.2, "most": 1.1, "beta": 0.5}
    _, rates, losses = run("causal", {"finch": keywords}, tmp_path)
    assert rates.rates == pytest.approx(expected(rates, losses, **keywords), rel=1e-5)
    factors = [rate / s for rate, s in zip(rates.rates, rates.scheduled, strict=True)]
    assert min(factors) < 1.1 == pytest.approx(max(factors))


@pytest.mark.parametrize("settings", [{}, {"lr_scheduler_type": "constant"}], ids=str)
def test_it_is_a_plain_run_with_these_rates(settings, tmp_path):
    """The steps have clipping and weight decay, which goes with the rate."""
    trainer, rates, _ = run("causal", "finch", tmp_path / "ours", **settings)
    base = tiny_base("causal", 0.1)
    plain = Rates(rates.rates)
    engine(base, "sequential", tmp_path / "plain", callbacks=[plain], **settings).learn()
    assert same(weights(trainer.base), weights(base))
    assert len(set(rates.rates)) == len(rates.rates)
    # Between steps, the rate is that of the schedule.
    assert all(rate == of_schedule for rate, of_schedule in rates.between)


def test_steps_on_memory_have_no_part_in_the_loss_and_follow_the_rates(tmp_path):
    kif = {"recurrent_kif": {"inner_steps": 2, "outer_steps": 3}}
    trainer, rates, _ = run("causal", [kif, "finch"], tmp_path)
    outer = trainer.methods[0].learner.optimizer.param_groups[0]["lr"]
    assert outer == pytest.approx(sum(rates.rates[-2:]) / 2)
    other_order, *_ = run("causal", ["finch", kif], tmp_path / "other")
    assert same(weights(trainer.base), weights(other_order.base))


def test_what_it_cannot_do_is_told_in_one_line():
    for keywords in ({"loss": 0.0}, {"most": 0.0}, {"beta": 1.0}):
        with pytest.raises(PerdureError, match="finch: needs loss > 0, most > 0 and 0 <= beta < 1"):
            FINCH(**keywords)


def test_rehearsed_rows_are_part_of_the_loss(tmp_path):
    trainer, rates, losses = run("causal", ["replay", "finch"], tmp_path)
    assert len(trainer.methods[0].context.memory.tasks["animal"]) == 6
    assert rates.rates == pytest.approx(expected(rates, losses), rel=1e-5)
