"""SI: the path integral against an independent training loop, and what it is to first order."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from perdure import methods
from perdure.errors import PerdureError
from perdure.methods.shared.fisher import relative
from perdure.methods.si import path_precision
from perdure.train import lifecycle
from perdure.train.parameters import snapshot, trained
from train.engine import STRICT, engine, learned, same, tiny_base, weights


pytestmark = pytest.mark.own


def loss_of(model, batch, items):
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    labels = batch["labels"][:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum") / items


def path_by_hand(model, steps, rate, decay, max_norm):
    """AdamW written out, on steps of several batches each: omega, w_end - w_start, in fp64."""
    parameters = trained(model)
    first, second, omega = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in "abc")
    start = snapshot(model)
    for t, batches in enumerate(steps):
        model.zero_grad()
        items = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
        for batch in batches:
            loss_of(model, batch, items).backward()
        whole = {n: p.grad.clone() for n, p in parameters.items()}
        norm = sum(g.square().sum() for g in whole.values()).sqrt()
        lr = rate * (1 - t / len(steps))  # the linear schedule
        for n, p in parameters.items():
            g = whole[n] * min(1.0, max_norm / (norm + 1e-6))
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g.square()
            m, v = first[n] / (1 - 0.9 ** (t + 1)), second[n] / (1 - 0.999 ** (t + 1))
            change = -lr * (m / (v.sqrt() + 1e-8) + decay * p.detach())
            p.data += change
            omega[n] -= whole[n] * change  # the gradient before clipping
    return omega, {n: p.detach() - start[n] for n, p in parameters.items()}


def test_the_precision_is_that_of_a_loop_with_decay_clipping_and_accumulation(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, "si", tmp_path, memory=0, gradient_accumulation_steps=2)
    method, batches = trainer.methods[0], []

    def record(inputs):
        batches.append({name: tensor.clone() for name, tensor in inputs.items()})
        return inputs

    method.before_step = record
    trainer.learn()
    lifecycle.end_task(trainer.methods, base.model)
    assert len(batches) == 2 * trainer.state.global_step == 10
    steps = [batches[i : i + 2] for i in range(0, 10, 2)]
    model = tiny_base("causal").model
    settings = STRICT["learning_rate"], STRICT["weight_decay"], STRICT["max_grad_norm"]
    omega, moved = path_by_hand(model, steps, *settings)
    mean = torch.cat([m.square().flatten() for m in moved.values()]).mean()
    expected = {n: (omega[n] / (moved[n] ** 2 + mean)).clamp(min=0) for n in omega}
    whole = torch.cat([tensor.flatten() for tensor in expected.values()]).mean()
    state, end = method.state_dict(), weights(base)
    assert len(state) == 2 * len(end)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[f"p.{name}"], tensor / whole, rtol=1e-2, atol=1e-3)
        assert torch.equal(state[f"m.{name}"], state[f"p.{name}"] * end[name])


@pytest.mark.parametrize("off", [{"weight_decay": 0.0}, {"max_grad_norm": 0.0}])
def test_decay_and_clipping_bind_there(off, tmp_path):
    one, other = (learned("causal", "si", tmp_path, memory=0, **more)[1] for more in ({}, off))
    assert not same(one.methods[0].precision, other.methods[0].precision)


def test_the_path_integral_adds_up_to_the_fall_of_the_loss(tmp_path):
    base, paths = tiny_base("causal"), []
    settings = {"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": 40, "num_train_epochs": 20, "weight_decay": 0.0}
    trainer = engine(base, "si", tmp_path, memory=0, max_grad_norm=0.0, **settings)
    batch = trainer._prepare_inputs(trainer.collate(trainer.train_dataset))

    def loss():
        with torch.no_grad():
            return trainer.task_loss(base.model, batch)[0].item()

    method, before = trainer.methods[0], loss()
    ending = method.on_train_end

    def end(*args, **kwargs):
        paths.append(sum(tensor.sum().item() for tensor in method.path.values()))
        ending(*args, **kwargs)

    method.on_train_end = end
    trainer.learn()
    assert before - loss() > 0.02
    assert paths[0] == pytest.approx(before - loss(), rel=0.05)


def test_the_precision_is_floored_and_damped():
    path = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([0.0, 2.0])}
    moved = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0, -1.0])}  # mean of squares 3/4
    precision = path_precision(path, moved, 4 / 3)
    assert precision["a"].tolist() == [1.5, 0.0]
    assert precision["b"].tolist() == [0.0, 1.0]
    still = {name: torch.zeros(2) for name in path}
    assert same(path_precision(still, still, 0.1), still)


@pytest.mark.parametrize(("loss", "weight"), [(1e-3, 1.0), (1.0, 1e-2), (50.0, 10.0)])
def test_the_scale_of_the_loss_and_of_the_movement_cancels(loss, weight):
    generator = torch.Generator().manual_seed(0)
    path, moved = ({"w": torch.randn(100, generator=generator)} for _ in "ab")
    scaled = path_precision({"w": loss * path["w"]}, {"w": weight * moved["w"]}, 0.1)
    expected = relative(path_precision(path, moved, 0.1))["w"]
    torch.testing.assert_close(relative(scaled)["w"], expected)


def test_precisions_add_up_and_pull_by_twice_the_strength(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"si": {"strength": 0.3}}, tmp_path, rows=12)  # the second task
    method = trainer.methods[0]
    first = {name: tensor.clone() for name, tensor in method.parabola.precision.items()}
    centre = {n: method.parabola.moment[n] / (first[n] + 1e-30) for n in first}
    for p in trained(base.model).values():
        p.grad = torch.zeros_like(p)
    method.edit_gradients(base.model)
    for name, p in trained(base.model).items():
        expected = 0.6 * first[name] * (p.detach() - centre[name])
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-5)
        p.grad = None
    trainer.learn()
    lifecycle.end_task(trainer.methods, base.model)
    for name, tensor in method.parabola.precision.items():
        torch.testing.assert_close(tensor, first[name] + method.precision[name])
    total = torch.cat([tensor.flatten() for tensor in method.parabola.precision.values()])
    torch.testing.assert_close(total.mean(), torch.tensor(2.0))


def test_the_path_ends_where_the_training_does_whoever_moves_the_weights_then(tmp_path):
    _, alone = learned("causal", "si", tmp_path / "a")
    _, beside = learned("causal", ["wise_ft", "si"], tmp_path / "b")
    lifecycle.end_task(beside.methods, beside.base.model)
    si = beside.methods[1]
    assert same(si.precision, alone.methods[0].precision)
    for name, p in trained(beside.base.model).items():  # and the centre is what wise_ft made
        assert torch.equal(si.parabola.moment[name], si.parabola.precision[name] * p)


@pytest.mark.parametrize("keywords", [{"strength": -1.0}, {"damping": 0.0}], ids=str)
def test_values_out_of_range_are_refused(keywords):
    with pytest.raises(PerdureError, match=r"si: \w+ must be"):
        methods.make({"si": keywords})
