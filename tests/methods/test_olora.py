"""O-LoRA: the closed form of its term, and what it does to the row spaces."""

import pytest
import torch

from perdure.train.parameters import trained
from tiny import KINDS
from train.engine import engine, tiny_base, tokenized


pytestmark = pytest.mark.own


def held(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}


def invariant(trainer):
    """The old adapter keeps its bits, and the optimizer does not see it."""
    before = held(trainer.base.model)
    assert before
    assert not before.keys() & trained(trainer.base.model).keys()

    def check():
        now = held(trainer.base.model)
        assert all(torch.equal(now[name], old) for name, old in before.items())

    return check


def rows_of(model, adapter: str) -> dict[str, torch.Tensor]:
    end = f".lora_A.{adapter}.weight"
    return {n.removesuffix(end): p for n, p in model.named_parameters() if n.endswith(end)}


def term(trainer):
    base = trainer.base
    trainer.methods[0].on_train_begin(None, None, None, model=base.model)
    batch, outputs = trainer.look(tokenized(base, "colour", 4))
    return trainer.methods[0].extra_loss(base.model, batch, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_the_sum_of_all_inner_products_of_rows(kind, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, {"olora": {"strength": 0.25}}, tmp_path)
    old, new = rows_of(base.model, "default"), rows_of(base.model, "new")
    assert old.keys() == new.keys()
    total = 0.0
    for name, rows in old.items():
        for one in rows:
            for other in new[name]:
                total += (one.double() * other.double()).sum().abs().item()
    loss = term(trainer)
    assert total > 1
    torch.testing.assert_close(loss.item(), 0.25 * total, rtol=1e-5, atol=0)
    loss.backward()
    for name, rows in new.items():  # d/dA |A_old A^T| = sign(A A_old^T) A_old
        slope = 0.25 * (rows @ old[name].mT).sign() @ old[name]
        torch.testing.assert_close(rows.grad, slope, rtol=1e-5, atol=1e-6)
    assert all(rows.grad is None for rows in old.values())


def test_it_is_zero_for_orthogonal_row_spaces_alone(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, "olora", tmp_path)
    old, new = rows_of(base.model, "default"), rows_of(base.model, "new")
    with torch.no_grad():
        for name, rows in new.items():
            basis = torch.linalg.svd(old[name])[2][4:]  # what no old row has a part in
            rows.copy_(torch.randn(4, len(basis)) @ basis)
        assert term(trainer).item() < 1e-3
        rows = next(iter(new.values()))
        rows[0] += 0.1 * next(iter(old.values()))[2]
        assert term(trainer).item() > 1e-2


def test_learning_with_it_turns_the_new_rows_away_from_the_old(tmp_path):
    terms = []
    for strength in (0.0, 0.5):
        trainer = engine(tiny_base("causal"), {"olora": {"strength": strength}}, tmp_path, rows=24)
        trainer.learn()
        trainer.methods[0].strength = 1.0
        terms.append(term(trainer).item())
    assert terms[1] < 0.5 * terms[0]


def test_the_first_task_keeps_the_adapter_and_the_second_adds_its_rank(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, "olora", tmp_path, memory=0, rows=8)
    assert not [n for n, _ in base.model.named_parameters() if ".new." in n]
    trainer.methods[0].end_task(base.model)
    assert base.peft.peft_config["default"].r == 4
    trainer = engine(base, "olora", tmp_path, rows=8)
    before = held(base.model)
    trainer.learn()
    trainer.methods[0].end_task(base.model)
    assert trainer.methods[0].state_dict() == {"rank": torch.tensor(4)}  # of one task
    assert base.peft.peft_config["default"].r == 8
    for name, now in held(base.model).items():
        old, new = now.split(4, int("lora_B" in name))
        assert torch.equal(old, before[name])
        assert new.any()
