"""The engine's own loss, and that micro-batches add up to a batch for every kind of model."""

import pytest
import torch

from perdure.train.method import Method
from perdure.train.step import task_loss
from tiny import KINDS
from train.engine import engine, tiny_base, tokenized


class Spy(Method):
    """Keeps the first gradient it is shown, before clipping."""

    family = "baseline"

    def edit_gradients(self, model):
        if not self.context.state:
            self.context.state = {
                n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }


def first_gradient(kind, work, size, accumulation):
    base = tiny_base(kind)
    trainer = engine(
        base,
        "sequential",
        work,
        rows=8,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
    )
    spy = Spy()
    spy.begin_task(base.model, trainer.methods[0].context)
    trainer.methods = [spy]
    trainer.learn()
    return spy.context.state


@pytest.mark.parametrize("kind", KINDS)
def test_two_micro_batches_of_four_have_the_gradient_of_one_batch_of_eight(kind, tmp_path):
    whole = first_gradient(kind, tmp_path / "a", 8, 1)
    parts = first_gradient(kind, tmp_path / "b", 4, 2)
    assert len(whole) > 4
    for name, gradient in whole.items():
        assert torch.linalg.norm(parts[name] - gradient) <= 1e-5 * torch.linalg.norm(gradient), name


def test_the_causal_loss_is_that_of_transformers():
    base = tiny_base("causal")
    rows = tokenized(base, "colour", 3)
    batch = {k: torch.tensor([row[k] for row in rows]) for k in ("input_ids", "labels")}
    outputs = base.model(**batch)
    ours, _ = task_loss(base.model, base.model, batch, "causal")
    torch.testing.assert_close(ours, outputs.loss)


def test_the_last_short_window_of_an_epoch_counts_its_own_items(tmp_path):
    # 10 rows in micro-batches of 2, two to a step: the last step has one micro-batch only
    base = tiny_base("causal")
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = engine(base, "sequential", tmp_path, rows=10, **settings)
    windows = []
    original = trainer.get_batch_samples

    def spied(*args):
        batches, items = original(*args)
        windows.append((len(batches), int(items)))
        return batches, items

    trainer.get_batch_samples = spied
    trainer.learn()
    tokens = sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    assert [n for n, _ in windows] == [2, 2, 1]
    assert sum(items for _, items in windows) == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_side_gradient_leaves_the_gradients_and_the_random_state_alone(kind, tmp_path):
    base = tiny_base(kind, dropout=0.1)
    trainer = engine(base, "sequential", tmp_path)
    rows = tokenized(base, "animal", 8)
    for p in trainer.parameters:
        p.grad = torch.ones_like(p)
    before = torch.random.get_rng_state()
    first, again = trainer.side_gradient(rows, seed=1), trainer.side_gradient(rows, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in trainer.parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(g.abs().sum() for g in first) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_fit_step_is_a_step_on_the_mean_loss_whatever_the_micro_batch(kind, tmp_path):
    def stepped(size):
        base = tiny_base(kind)
        trainer = engine(base, "sequential", tmp_path, per_device_train_batch_size=size)
        optimizer = torch.optim.SGD(trainer.parameters, 0.1)
        trainer.fit_step(tokenized(base, "animal", 8), optimizer, seed=1)
        assert all(p.grad is None for p in trainer.parameters)
        return torch.cat([p.detach().flatten() for p in trainer.parameters])

    torch.testing.assert_close(stepped(8), stepped(3), rtol=1e-5, atol=1e-7)


def test_an_extra_loss_counts_once_whatever_the_accumulation(tmp_path):
    class Pull(Method):
        family = "baseline"

        def extra_loss(self, model, inputs, outputs):
            return sum((p**2).sum() for p in model.parameters() if p.requires_grad)

    def final(size, accumulation):
        base = tiny_base("seq2seq")
        trainer = engine(
            base,
            "sequential",
            tmp_path,
            rows=8,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.methods = [Pull()]
        trainer.learn()
        return torch.cat([p.detach().flatten() for p in trainer.parameters])

    torch.testing.assert_close(final(8, 1), final(2, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 3])
def test_an_extra_loss_and_a_penalty_hold_in_a_step_on_memory(size, tmp_path):
    class Pull(Method):
        family = "baseline"

        def extra_loss(self, model, inputs, outputs):
            return sum((p**2).sum() for p in model.parameters() if p.requires_grad)

        def add_penalty(self, model):
            for p in model.parameters():
                if p.requires_grad:
                    p.grad += 0.5 * p.detach()

    base = tiny_base("causal")
    trainer = engine(
        base, "sequential", tmp_path, per_device_train_batch_size=size, max_grad_norm=0.0
    )
    rows, before = tokenized(base, "animal", 8), [p.detach().clone() for p in trainer.parameters]
    of_the_task = trainer.side_gradient(rows, seed=1)
    trainer.methods = [Pull()]
    assert all(map(torch.equal, of_the_task, trainer.side_gradient(rows, seed=1)))
    trainer.fit_step(rows, torch.optim.SGD(trainer.parameters, 0.1), seed=1)
    for weight, start, gradient in zip(trainer.parameters, before, of_the_task, strict=True):
        torch.testing.assert_close(weight, start - 0.1 * (gradient + 2 * start + 0.5 * start))


@pytest.mark.parametrize(
    "method", [{"lwf": {"strength": 3.0}}, {"feature_distillation": {"strength": 3.0}}]
)
def test_a_teacher_holds_in_a_step_on_memory(method, tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, method, tmp_path, per_device_train_batch_size=8)
    rows = tokenized(base, "animal", 8)
    trainer.methods[0].on_train_begin(None, None, None, model=base.model)
    for p in trainer.parameters:
        p.data += 0.1 * torch.randn_like(p)
    batch = trainer._prepare_inputs(trainer.collate(rows))
    base.model.train()
    loss, outputs = trainer.task_loss(base.model, batch)
    whole = loss + trainer.methods[0].extra_loss(base.model, batch, outputs)
    expected, gradients = torch.autograd.grad(whole, trainer.parameters), []
    trainer.fit_step(
        rows,
        torch.optim.SGD(trainer.parameters, 0.0),
        seed=1,
        inspect=lambda: gradients.extend(p.grad.clone() for p in trainer.parameters),
    )
    torch.testing.assert_close(gradients, list(expected), rtol=1e-4, atol=1e-6)
    assert not all(map(torch.allclose, gradients, trainer.side_gradient(rows, seed=1)))


def test_the_pull_of_ewc_holds_in_a_step_on_memory(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"ewc": {"strength": 2.0}}, tmp_path)
    rows, gradients = tokenized(base, "animal", 4), []
    for p in trainer.parameters:
        p.data += 0.1 * torch.randn_like(p)
    of_the_task, state = trainer.side_gradient(rows, seed=1), trainer.methods[0].state_dict()
    names = [name for name, p in base.model.named_parameters() if p.requires_grad]
    pulls = [
        2.0 * (state[f"p.{name}"] * p.detach() - state[f"m.{name}"])
        for name, p in zip(names, trainer.parameters, strict=True)
    ]
    trainer.fit_step(
        rows,
        torch.optim.SGD(trainer.parameters, 0.0),
        seed=1,
        inspect=lambda: gradients.extend(p.grad.clone() for p in trainer.parameters),
    )
    assert sum(pull.abs().sum() for pull in pulls) > 0
    torch.testing.assert_close(
        gradients, [gradient + pull for gradient, pull in zip(of_the_task, pulls, strict=True)]
    )
