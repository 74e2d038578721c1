"""HFT: which matrices are frozen, and that they keep their bits."""

import pytest
import torch

from perdure.methods.hft import _kinds
from perdure.train.parameters import snapshot, trained
from tiny import KINDS, tiny_model
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


def invariant(trainer):
    """Frozen matrices keep their bits."""
    moving = set(trained(trainer.base.model))
    frozen = {n: p for n, p in trainer.base.model.named_parameters() if n not in moving}
    before = {name: p.detach().clone() for name, p in frozen.items()}

    def check():
        assert all(torch.equal(p, before[name]) for name, p in frozen.items())

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_matrices_keep_their_bits_under_adamw_with_weight_decay(kind, tmp_path):
    base = tiny_base(kind)
    before = snapshot(base.model)
    trainer = engine(base, "hft", tmp_path)
    moving = set(trained(base.model))
    frozen = set(before) - moving
    assert len(frozen) == len([name for name in before if ".lora_" in name]) // 2
    trainer.learn()
    after = {name: p.detach() for name, p in base.model.named_parameters()}
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert any(not torch.equal(after[name], before[name]) for name in moving)
    trainer.methods[0].end_task(base.model)
    assert set(trained(base.model)) == set(before)  # the next task may train them all


def test_half_of_every_kind_and_what_stands_once_is_left_out():
    kinds = _kinds([name for name, _ in tiny_model("causal").named_parameters()])
    assert "model.layers.N.self_attn.q_proj" in kinds
    assert len(kinds) == 9  # four of attention, three of the feed-forward, two norms
    assert all(sorted(layers) == ["000000", "000001"] for layers in kinds.values())


def test_a_pair_of_lora_is_frozen_as_one(tmp_path):
    base = tiny_base("causal")
    engine(base, "hft", tmp_path)
    moving = set(trained(base.model))
    for name in moving:
        assert name.replace("lora_A", "lora_B") in moving
        assert name.replace("lora_B", "lora_A") in moving


def test_the_first_task_is_whole_unless_asked_for(tmp_path):
    whole, half = tiny_base("causal"), tiny_base("causal")
    engine(whole, "hft", tmp_path, memory=0)
    engine(half, {"hft": {"first": True}}, tmp_path, memory=0)
    assert len(trained(whole.model)) == 2 * len(trained(half.model))


def test_every_stage_draws_its_own_half_and_the_same_seed_the_same(tmp_path):
    def frozen(seed):
        base = tiny_base("causal")
        trainer = engine(base, "sequential", tmp_path)
        method = engine(base, "hft", tmp_path).methods[0]
        method.end_task(base.model)
        context = trainer.methods[0].context
        context.seed = seed
        method.begin_task(base.model, context)
        return frozenset(trained(base.model))

    assert frozen(1) == frozen(1)
    assert len({frozen(seed) for seed in range(8)}) > 1
