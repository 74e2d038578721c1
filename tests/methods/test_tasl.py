"""TaSL: importance and the four cases, computed by hand beside a run."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from perdure.errors import PerdureError
from perdure.methods.tasl import TaSL
from perdure.train.parameters import HEAD_NAMES, snapshot, trained
from tiny import KINDS
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


class ByHand(TrainerCallback):
    """S and U in double precision, from the weights and gradients after each step but the first."""

    def __init__(self, model):
        self.units = {name: p for name, p in trained(model).items() if name not in HEAD_NAMES}
        self.s = dict.fromkeys(self.units, 0.0)
        self.u = dict.fromkeys(self.units, 0.0)
        self.steps = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps += 1
        for name, p in self.units.items() if self.steps > 1 else ():
            now = (p.detach().double() * p.grad.double()).abs()
            self.s[name] = 0.85 * self.s[name] + 0.15 * now
            self.u[name] = 0.85 * self.u[name] + 0.15 * (now - self.s[name]).abs()

    def scores(self):
        means = {name: float((self.s[name] * self.u[name]).mean()) for name in self.units}
        least, most = min(means.values()), max(means.values())
        return {name: (mean - least) / (most - least) for name, mean in means.items()}


def run(kind, tmp_path, method="tasl", whole=False, **settings):
    """A second task: the engine, the hand, the weights before it and as trained."""
    base = tiny_base(kind, whole=whole)
    before, hand = snapshot(base.model), ByHand(base.model)
    trainer = engine(base, method, tmp_path, callbacks=[hand], **settings)
    trainer.learn()
    return trainer, hand, before, snapshot(base.model)


@pytest.mark.parametrize(("kind", "whole"), [*((kind, False) for kind in KINDS), ("causal", True)])
def test_the_four_cases_and_the_running_scores(kind, whole, tmp_path):
    trainer, hand, before, learned = run(kind, tmp_path, whole=whole)
    new = hand.scores()
    names = sorted(new, key=new.__getitem__)
    # important to the old tasks: the most important one of now, and the least
    old = {name: 0.5 * place / len(names) for place, name in enumerate(names)}
    old |= {names[0]: 1.0, names[-1]: 0.9}
    trainer.methods[0].old = {name: torch.tensor(score) for name, score in old.items()}
    trainer.methods[0].end_task(trainer.base.model)
    after, cases = snapshot(trainer.base.model), set()
    for name in names:
        now = new[name] > np.percentile(list(new.values()), 80)
        then = old[name] > np.percentile(list(old.values()), 80)
        share = {(1, 1): 0.3, (1, 0): 1.0, (0, 1): 0.0, (0, 0): 0.5}[now, then]
        cases.add((now, then))
        expected = share * learned[name] + (1 - share) * before[name]
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=1e-5)
        if share == 1:
            assert torch.equal(after[name], learned[name])
        if share == 0:
            assert torch.equal(after[name], before[name])
        assert not torch.equal(learned[name], before[name])
    assert len(cases) == 4
    mixed = {name: 0.3 * new[name] + 0.7 * old[name] for name in names}
    least, most = min(mixed.values()), max(mixed.values())
    state = trainer.methods[0].state_dict()
    assert state.keys() == {f"i.{name}" for name in names}
    for name in names:
        expected = (mixed[name] - least) / (most - least)
        assert float(state[f"i.{name}"]) == pytest.approx(expected, abs=1e-4)
    for name in set(learned) - set(names):  # an encoder's head
        assert torch.equal(after[name], learned[name])


def test_the_first_task_leaves_its_scores_and_its_weights(tmp_path):
    trainer, hand, _, learned = run("causal", tmp_path, memory=0)
    trainer.methods[0].end_task(trainer.base.model)
    state = trainer.methods[0].state_dict()
    for name, score in hand.scores().items():
        assert float(state[f"i.{name}"]) == pytest.approx(score, abs=1e-4)
        assert torch.equal(snapshot(trainer.base.model)[name], learned[name])


def test_tensors_that_did_not_move_are_not_moved(tmp_path):
    trainer, _, before, _ = run("causal", tmp_path, learning_rate=1e-30)
    trainer.methods[0].end_task(trainer.base.model)
    for name, tensor in snapshot(trainer.base.model).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-7, rtol=1e-6)


def test_a_task_of_one_step_has_no_scores_and_takes_the_mean(tmp_path):
    trainer, _, before, learned = run("causal", tmp_path, rows=4)
    trainer.methods[0].old = dict.fromkeys(trainer.methods[0].units, torch.tensor(1.0))
    trainer.methods[0].end_task(trainer.base.model)
    for name, tensor in snapshot(trainer.base.model).items():
        torch.testing.assert_close(tensor, (before[name] + learned[name]) / 2)
    assert torch.isfinite(torch.stack(list(trainer.methods[0].state_dict().values()))).all()


def test_a_strength_between(tmp_path):
    half, _, _, learned = run("causal", tmp_path / "half", {"tasl": {"strength": 0.5}})
    whole, _, _, _ = run("causal", tmp_path / "whole")
    for trainer in (half, whole):
        trainer.methods[0].end_task(trainer.base.model)
    fused = snapshot(whole.base.model)
    for name, tensor in snapshot(half.base.model).items():
        torch.testing.assert_close(tensor, (fused[name] + learned[name]) / 2, atol=1e-6, rtol=1e-5)


def test_bf16_weights_are_averaged_in_fp32():
    method, p = TaSL(), torch.nn.Parameter(torch.randn(40).bfloat16())
    before, learned = torch.randn(40).bfloat16(), p.detach().clone()
    method.before, method.units = {"p": before}, {"p": p}
    with torch.no_grad():
        method._average([True], [True])
    assert torch.equal(p, torch.lerp(before.float(), learned.float(), 0.3).bfloat16())


@pytest.mark.parametrize("keywords", [{"share": 1.2}, {"beta": 1.0}, {"new": -1}, {"strength": 2}])
def test_keywords_out_of_range_are_told(keywords):
    with pytest.raises(PerdureError, match="tasl: needs share, new and strength"):
        TaSL(**keywords)
