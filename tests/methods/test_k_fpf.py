"""k-FPF: when its bursts come, what they leave alone, and how a stopped run goes on."""

import pytest
import torch
from transformers import TrainerCallback

from perdure.errors import PerdureError
from perdure.methods import make
from train.engine import engine, learned, same, stopped_and_resumed, tiny_base, weights


pytestmark = pytest.mark.own


class Before(TrainerCallback):
    """Keeps what there is after the optimizer's step, which is before a burst."""

    def on_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        self.weights = weights(trainer.base)
        self.moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]


class After(TrainerCallback):
    """Compares it with what there is when the step has ended."""

    def __init__(self, before):
        self.before, self.moved = before, {}

    def on_step_end(self, args, state, control, **kwargs):
        trainer, now = self.before.trainer, weights(self.before.trainer.base)
        then = self.before.weights
        self.moved[state.global_step] = {n for n in now if not torch.equal(now[n], then[n])}
        moments = [v for s in trainer.optimizer.state.values() for v in s.values()]
        assert all(torch.equal(a, b) for a, b in zip(self.before.moments, moments, strict=True))
        assert all(p.grad is None for p in trainer.parameters)


def run(tmp_path, rows=40, **keywords):
    """The names that moved outside the optimizer's step, by step, and the engine."""
    before = Before()
    after = After(before)
    trainer = engine(
        tiny_base("causal"), {"k_fpf": keywords}, tmp_path, rows=rows, callbacks=[after]
    )
    trainer.add_callback(before)
    before.trainer = trainer
    trainer.learn()
    return after.moved, trainer


@pytest.mark.parametrize(
    ("k", "steps"),
    [(0, []), (1, [10]), (2, [5, 10]), (3, [3, 6, 10]), (4, [2, 5, 7, 10]), (10, range(1, 11))],
)
def test_k_bursts_at_equal_distances_and_between_them_nothing(k, steps, tmp_path):
    moved, trainer = run(tmp_path, k=k, steps=1)
    assert trainer.state.max_steps == 10
    assert [step for step, names in moved.items() if names] == list(steps)


def test_a_burst_moves_its_share_of_the_modules(tmp_path):
    moved, _ = run(tmp_path, share=0.5)  # of the four LoRA pairs
    for names in (moved[step] for step in (2, 5, 7, 10)):
        assert len(names) == 4
        assert len({name.partition(".lora_")[0] for name in names}) == 2


def drawn(tmp_path, **keywords):
    base, draws = tiny_base("causal"), []
    trainer = engine(base, {"k_fpf": keywords}, tmp_path, rows=12)
    fit, memory = trainer.fit_step, trainer.methods[0].context.memory
    draw = memory.draw
    memory.draw = lambda start, count: draws.append((start, count)) or draw(start, count)
    seeds = []
    trainer.fit_step = lambda rows, optimizer, seed, *rest: (
        seeds.append(seed),
        fit(rows, optimizer, seed, *rest),
    )
    trainer.learn()
    assert len(set(seeds)) == len(seeds)  # dropout is another each time
    return draws


def test_every_step_of_every_burst_draws_the_rows_that_follow(tmp_path):
    assert drawn(tmp_path, k=2, steps=3, rows=2) == [(i, 2) for i in range(0, 12, 2)]
    # with more bursts than steps none is lost
    assert drawn(tmp_path, k=5, steps=1, rows=2) == [(i, 2) for i in range(0, 10, 2)]


@pytest.mark.parametrize("keyword", [None, 1e-4])
def test_a_burst_has_the_rate_of_the_step_before_it(keyword, tmp_path):
    base, rates = tiny_base("causal"), []
    keywords = {"k": 4, "steps": 1, "learning_rate": keyword}
    trainer = engine(base, {"k_fpf": keywords}, tmp_path, learning_rate=1e-2)
    fit = trainer.fit_step

    def watched(rows, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        fit(rows, optimizer, *rest)

    trainer.fit_step = watched
    trainer.learn()
    # The ten steps have 10, 9, ..., 1 thousandths; the bursts come after steps 2, 5, 7 and 10.
    expected = [9e-3, 6e-3, 4e-3, 1e-3] if keyword is None else [keyword] * 4
    assert rates == pytest.approx(expected)


def test_one_burst_is_fpf(tmp_path):
    """Of the same draws the last burst is the one after the task; its dropout is drawn anew."""
    keywords = {"steps": 5, "learning_rate": 1e-3}
    k_fpf_weights, _ = learned(
        "causal", {"k_fpf": {"k": 1, **keywords}}, tmp_path / "a", dropout=0.0
    )
    base = tiny_base("causal", 0.0)
    trainer = engine(base, {"fpf": keywords}, tmp_path / "b")
    trainer.learn()
    trainer.methods[0].end_task(base.model)
    assert same(k_fpf_weights, weights(base))


def test_no_bursts_are_the_sequential_run(tmp_path):
    plain, _ = learned("causal", "sequential", tmp_path / "a")
    ours, _ = learned("causal", {"k_fpf": {"k": 0}}, tmp_path / "b")
    assert same(plain, ours)


@pytest.mark.parametrize(("at", "every"), [(5, 5), (8, 5)])  # right after a burst, and later
def test_a_stopped_run_chooses_the_same_modules(at, every, tmp_path):
    whole, _ = learned("causal", "k_fpf", tmp_path / "whole", checkpoint_every=every)
    again, _ = stopped_and_resumed("causal", "k_fpf", tmp_path / "again", at, every)
    assert same(whole, again)


def test_fewer_than_no_bursts_are_refused():
    with pytest.raises(PerdureError, match="k must be >= 0"):
        make({"k_fpf": {"k": -1}})
