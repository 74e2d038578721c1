"""A-GEM: what the gradient holds after its projection."""

import pytest
import torch

from train.engine import STRICT, engine, learned, tiny_base


pytestmark = pytest.mark.own


def projected(tmp_path, monkeypatch, **keywords):
    """For every step: the gradient before and after, and that of the remembered rows."""
    base, steps = tiny_base("causal"), []
    trainer = engine(
        base, {"agem": keywords}, tmp_path, rows=60, **{**STRICT, "learning_rate": 5e-2}
    )
    method, edit, side = (
        trainer.methods[0],
        trainer.methods[0].edit_gradients,
        trainer.side_gradient,
    )

    def flat(tensors):
        return torch.cat([t.detach().flatten().clone() for t in tensors])

    def watched(model):
        before = flat(p.grad for p in trainer.parameters)
        edit(model)
        steps.append((before, flat(p.grad for p in trainer.parameters), references[-1]))

    def reference(rows, seed):
        gradients = side(rows, seed)
        references.append(flat(gradients))
        return gradients

    references = []
    monkeypatch.setattr(method, "edit_gradients", watched)
    monkeypatch.setattr(trainer, "side_gradient", reference)
    trainer.learn()
    return steps


def test_after_the_projection_the_gradient_does_not_point_against_the_memory(tmp_path, monkeypatch):
    steps = projected(tmp_path, monkeypatch)
    against = 0
    for before, after, reference in steps:
        if before @ reference >= 0:
            assert torch.equal(before, after)
            continue
        against += 1
        assert abs(after @ reference) <= 1e-5 * after.norm() * reference.norm() + 1e-9
        assert after.norm() <= before.norm()
        closed = before - (before @ reference) / (reference @ reference) * reference
        torch.testing.assert_close(after, closed)
    assert 0 < against < len(steps)


def test_a_share_of_the_projection_leaves_the_rest(tmp_path, monkeypatch):
    for before, after, reference in projected(tmp_path, monkeypatch, strength=0.25):
        if before @ reference < 0:
            torch.testing.assert_close(
                after @ reference, 0.75 * (before @ reference), rtol=1e-3, atol=1e-7
            )


def test_every_step_draws_its_own_rows(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"agem": {"rows": 3}}, tmp_path, rows=20)
    memory, draws = trainer.methods[0].context.memory, []
    original = memory.draw
    memory.draw = lambda start, n: draws.append((start, n)) or original(start, n)
    trainer.learn()
    assert draws == [(3 * i, 3) for i in range(5)]


def test_it_composes_with_a_pull(tmp_path):
    both, trainer = learned("causal", ["l2", "agem"], tmp_path / "a")
    alone, _ = learned("causal", "agem", tmp_path / "b")
    assert [m.name for m in trainer.methods] == ["l2", "agem"]
    assert any(not torch.equal(both[name], alone[name]) for name in alone)
