"""SLAO: the start by what defines it, the merge in closed form over three tasks."""

import pytest
import torch

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.shared.lora import factors
from perdure.methods.slao import SLAO
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.parameters import snapshot
from tiny import KINDS
from train.engine import engine, same, tiny_base


pytestmark = pytest.mark.own


def begun(method, model, state, stage=2):
    method.begin_task(model, TaskContext("colour", stage, 3, Memory({}, 5), state))
    return pairs(model)


def pairs(model):
    """Copies of A and B by layer."""
    return {n: (f.a.detach().clone(), f.b.detach().clone()) for n, f in factors(model).items()}


def trained(model, seed):
    """New factors, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for f in factors(model).values():
        for p in (f.a, f.b):
            p.data = torch.randn(p.shape, generator=generator).to(p.dtype)
    return pairs(model)


def tasks(model, count, **keywords):
    """What each of the tasks began with, was trained to, and left in the model; the last state."""
    state, history = {}, []
    for i in range(1, count + 1):
        method = SLAO(**keywords)
        start = begun(method, model, state, i)
        tuned = trained(model, seed=i)
        method.end_task(model)
        state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        history.append((start, tuned, pairs(model)))
    return history, state


@pytest.mark.parametrize("kind", KINDS)
def test_three_tasks_by_the_formula(kind):
    base = tiny_base(kind)
    untouched = pairs(base.model)
    history, state = tasks(base.model, 3)
    half, third = 2**-0.5, 3**-0.5
    assert int(state["tasks"]) == 3
    for name in untouched:
        starts, tuned, merged = zip(*[[run[name] for run in task] for task in history], strict=True)
        assert torch.equal(starts[0][0], untouched[name][0])  # the first task is plain
        assert torch.equal(merged[0][1], tuned[0][1])
        for i in (1, 2):
            a, b = starts[i]
            previous = tuned[i - 1][0]
            torch.testing.assert_close(a @ a.mT, torch.eye(len(a)), atol=1e-5, rtol=0)
            lower = previous @ a.mT  # A_prev = R^T Q^T with R upper: this and the diagonal say all
            torch.testing.assert_close(lower @ a, previous, atol=1e-5, rtol=1e-5)
            assert lower.triu(1).abs().max() < 1e-5
            assert (lower.diagonal() > 0).all()
            assert torch.equal(b, tuned[i - 1][1])  # the trained B, not the merged one
            assert torch.equal(merged[i][0], tuned[i][0])
        b1, b2, b3 = (b.double() for _, b in tuned)
        second = (1 - half) * b1 + half * b2
        whole = (1 - third) * (1 - half) * b1 + (1 - third) * half * b2 + third * b3
        torch.testing.assert_close(merged[1][1].double(), second, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(merged[2][1].double(), whole, atol=1e-6, rtol=1e-5)
        assert torch.equal(state[f"b.{name}"], tuned[2][1])


def test_without_merging_the_adapter_is_the_last_one_trained():
    history, state = tasks(tiny_base("causal").model, 3, merging=1.0)
    for name, (a, b) in history[2][1].items():
        assert torch.equal(a, history[2][2][name][0])
        assert torch.equal(b, history[2][2][name][1])
    assert list(state) == ["tasks"]


def test_a_rate_of_ones_own_and_a_start_without_the_jump():
    history, _ = tasks(tiny_base("causal").model, 2, merging=0.25, orthogonal=False)
    (_, one, _), (start, two, merged) = history
    for name in one:
        assert torch.equal(start[name][0], one[name][0])
        assert torch.equal(start[name][1], one[name][1])
        torch.testing.assert_close(merged[name][1], 0.75 * one[name][1] + 0.25 * two[name][1])


def test_an_a_without_full_rank_starts_orthonormal_too():
    model = tiny_base("causal").model
    first = next(iter(factors(model)))
    a = factors(model)[first].a
    a.data[1], a.data[3] = 2 * a.data[0], 0.0
    before = a.detach().clone()
    start = begun(SLAO(), model, {"tasks": torch.tensor(1)})[first][0]
    torch.testing.assert_close(start @ start.mT, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(before @ start.mT @ start, before, atol=1e-5, rtol=1e-5)


def test_the_signs_a_library_gives_play_no_part(monkeypatch):
    state, original = {"tasks": torch.tensor(1)}, torch.linalg.qr
    plain = begun(SLAO(), tiny_base("causal").model, state)

    def flipped(matrix):
        q, r = original(matrix)
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
        return q * signs, signs[:, None] * r

    monkeypatch.setattr(torch.linalg, "qr", flipped)
    other = begun(SLAO(), tiny_base("causal").model, state)
    for name, (a, _) in plain.items():
        assert torch.equal(other[name][0], a)


@pytest.mark.parametrize("kind", KINDS)
def test_what_else_is_trained_stays_as_trained(kind, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, "slao", tmp_path)
    trainer.learn()
    before = snapshot(base.model)
    trainer.methods[0].end_task(base.model)
    moved = {name for name, p in snapshot(base.model).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_B" in name}


def test_bf16_weights_are_merged_in_fp32():
    base = tiny_base("causal")
    base.model.to(torch.bfloat16)
    history, _ = tasks(base.model, 2)
    for name, (_, b) in history[1][2].items():
        one, two = (run[1][name][1].float() for run in history)
        assert torch.equal(b, torch.lerp(one, two, 2**-0.5).bfloat16())


def test_a_stopped_task_merges_with_the_stage_and_not_the_checkpoint():
    model = tiny_base("causal").model
    state = {"tasks": torch.tensor(1)}
    method = SLAO()
    begun(method, model, state)
    trained(model, seed=1)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert same(before, state)  # what the stage before left, until this task ends


def test_what_it_cannot_do_is_told_in_one_line():
    with pytest.raises(PerdureError, match="merging must be from 0 to 1"):
        SLAO(merging=1.5)
    with pytest.raises(PerdureError, match="set adapter"):
        SLAO().check(Config(adapter=None), "causal")
    model = tiny_base("causal").model
    f = next(iter(factors(model).values()))
    f.a.data = torch.zeros(40, 32)
    with pytest.raises(PerdureError, match="too few for 40"):
        begun(SLAO(), model, {}, 1)
