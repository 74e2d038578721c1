"""The pull that L2, EWC, MAS and SI share, and the precisions of EWC and MAS."""

import copy
import json
import warnings

import pytest
import torch
from transformers import TrainerCallback

from perdure import methods
from perdure.errors import PerdureError
from perdure.methods.shared import adapter_bank
from perdure.methods.shared.fisher import fisher, relative, sampled, sensitivity
from perdure.methods.shared.quadratic_pull import Parabola
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.parameters import snapshot, trained
from tiny import KINDS
from train.engine import engine, first_stage, learned, same, tiny_base, tokenized


pytestmark = pytest.mark.own


def linear(*weights: float) -> torch.nn.Linear:
    model = torch.nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    model.weight.grad = torch.zeros(1, len(weights))
    return model


def test_the_pull_is_the_derivative_of_the_penalty():
    model = linear(1.0, -2.0, 3.0)
    precision, centre = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, 1.0, 9.0]])
    w = model.weight.detach().clone().requires_grad_()
    (0.7 / 2 * (precision * (w - centre) ** 2).sum()).backward()
    Parabola({"weight": precision * centre}, {"weight": precision}).add_gradient(model, 0.7)
    torch.testing.assert_close(model.weight.grad, w.grad)
    model.weight.grad.zero_()
    Parabola({"weight": centre}, None).add_gradient(model, 0.7)
    torch.testing.assert_close(model.weight.grad, 0.7 * (model.weight.detach() - centre))


def test_penalties_of_several_tasks_are_one_parabola():
    tasks = [(torch.rand(1, 3), torch.randn(1, 3)) for _ in range(4)]
    parabola = Parabola({}, {})
    for precision, centre in tasks:
        parabola.add({"weight": precision}, {"weight": centre})
    model = linear(0.3, -1.0, 2.0)
    parabola.add_gradient(model, 2.0)
    expected = sum(2.0 * p * (model.weight.detach() - c) for p, c in tasks)
    torch.testing.assert_close(model.weight.grad, expected)


def test_online_keeps_the_newest_centre_and_decays_the_rest():
    parabola = Parabola({}, {})
    for precision, centre in ((4.0, 1.0), (1.0, 3.0)):
        parabola.move(
            {"w": torch.full((2,), precision)}, {"w": torch.full((2,), centre)}, decay=0.5
        )
    assert torch.equal(parabola.precision["w"], torch.full((2,), 3.0))
    assert torch.equal(parabola.moment["w"], torch.full((2,), 9.0))


def test_new_rows_of_a_head_are_free():
    model = torch.nn.Linear(2, 3, bias=False)
    model.weight.grad = torch.zeros(3, 2)
    Parabola({"weight": torch.zeros(2, 2)}, None).add_gradient(model, 1.0)
    assert torch.equal(model.weight.grad[:2], model.weight.detach()[:2])
    assert not model.weight.grad[2].any()
    parabola = Parabola({}, {})
    parabola.add({"weight": torch.ones(2, 2)}, {"weight": torch.ones(2, 2)})
    parabola.add({"weight": torch.ones(3, 2)}, {"weight": torch.ones(3, 2)})
    assert parabola.precision["weight"].tolist() == [[2, 2], [2, 2], [1, 1]]


def test_the_fisher_of_a_softmax_layer_is_its_closed_form(tmp_path):
    """For logits z: E_y (dlog p / dz_k)^2 = p_k (1 - p_k); the head's bias is z's own."""
    base = tiny_base("encoder")
    trainer = engine(base, "sequential", tmp_path, memory=0)
    rows = tokenized(base, "colour", 6)
    many = [fisher(trainer, base.model, rows, seed)["bias"] for seed in range(60)]
    _, outputs = trainer.look(rows)
    p = outputs.logits.softmax(-1)
    expected = (p * (1 - p)).mean(0)
    torch.testing.assert_close(torch.stack(many).mean(0), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_precision_looks_at_no_label_and_not_at_the_batch_size(kind, tmp_path):
    base = tiny_base(kind)
    rows = tokenized(base, "animal", 4)
    one = engine(base, "sequential", tmp_path / "a", memory=0)
    two = engine(base, "sequential", tmp_path / "b", memory=0, per_device_train_batch_size=1)
    change = {
        "causal": lambda labels: [min(label, 7) for label in labels],
        "seq2seq": lambda labels: [*labels[:-1], 5],  # the decoder reads all labels but the last
        "encoder": lambda label: (label + 1) % 6,
    }[kind]
    other = [{**row, "labels": change(row["labels"])} for row in rows]
    assert all(changed["labels"] != row["labels"] for changed, row in zip(other, rows, strict=True))
    for measure in (fisher, sensitivity):
        precision = measure(one, base.model, rows, 1)
        assert same(precision, measure(two, base.model, rows, 1))
        assert same(precision, measure(one, base.model, other, 1))
        assert all((tensor >= 0).all() for tensor in precision.values())
        assert any(tensor.any() for tensor in precision.values())


def test_a_precision_is_relative_to_its_mean_over_all_weights():
    precision = {"a": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([0.0, 4.0, 2.0, 2.0])}
    assert relative(precision)["a"].tolist() == [[0.5, 1.5]]
    assert relative(precision)["b"].tolist() == [0.0, 2.0, 1.0, 1.0]
    for scale in (1e-12, 1e9):  # another base
        scaled = relative({name: scale * tensor for name, tensor in precision.items()})
        for name, tensor in relative(precision).items():
            torch.testing.assert_close(scaled[name], tensor)
    none = relative({"a": torch.zeros(3)})
    assert none["a"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "old"),
    [
        ({"ewc": {"tasks": "each"}}, 1.0),
        ({"ewc": {"tasks": "online", "decay": 0.5}}, 0.5),
        ({"mas": {}}, 1.0),
    ],
    ids=str,
)
def test_each_task_adds_a_precision_of_mean_one(spec, old, tmp_path):
    """Strength (F_1 / mean F_1 ... F_2 / mean F_2) (w - w*): the exact gradient after two tasks."""
    base = tiny_base("causal")
    trainer = engine(base, spec, tmp_path, rows=12)  # the second task
    method = trainer.methods[0]
    first = {name: tensor.clone() for name, tensor in method.parabola.precision.items()}
    measure = sensitivity if method.name == "mas" else fisher
    precision = measure(trainer, base.model, trainer.train_dataset, method.context.seed)
    mean = torch.cat([tensor.flatten() for tensor in precision.values()]).mean()
    for p in trained(base.model).values():
        p.grad = None
    trainer.methods[0].end_task(base.model)
    for name, tensor in precision.items():
        expected = old * first[name] + tensor / mean
        torch.testing.assert_close(method.parabola.precision[name], expected)
    total = torch.cat([tensor.flatten() for tensor in method.parabola.precision.values()])
    torch.testing.assert_close(total.mean(), torch.tensor(1.0 + old))


def test_drawn_choices_follow_the_model():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4000, 1)
    counts = torch.bincount(sampled(logits, 5), minlength=3) / 4000
    torch.testing.assert_close(counts, logits[0].softmax(-1), atol=0.03, rtol=0)
    assert torch.equal(sampled(logits, 5), sampled(logits, 5))
    assert not torch.equal(sampled(logits, 5), sampled(logits, 6))


def test_l2_without_bounds_holds_the_weights_where_they_were(tmp_path):
    """Under AdamW with weight decay and clipping, the pull wins over the task."""
    base = tiny_base("causal")
    trainer = engine(base, {"l2": {"strength": 1e6}}, tmp_path / "a", learning_rate=1e-4)
    centre = trainer.methods[0].parabola.moment  # the precision is 1
    away = sum((p - centre[n]).square().sum() for n, p in trained(base.model).items())
    trainer.learn()
    near = sum((p - centre[n]).square().sum() for n, p in trained(base.model).items())
    assert near < away


def test_l2_towards_the_base_keeps_the_weights_that_the_lineage_began_with(tmp_path):
    base = tiny_base("causal")
    began = snapshot(base.model)
    trainer = engine(base, {"l2": {"towards": "base"}}, tmp_path, memory=0)
    trainer.learn()
    trainer.methods[0].end_task(base.model)
    assert same(trainer.methods[0].parabola.moment, began)
    again = methods.make({"l2": {"towards": "base"}})[0]
    context = copy.copy(trainer.methods[0].context)
    context.state = trainer.methods[0].state_dict()
    again.begin_task(base.model, context)
    again.end_task(base.model)
    assert same(again.parabola.moment, began)


def test_l2_towards_the_base_pulls_in_the_first_task(tmp_path):
    """By g + strength (w - w_base), in two steps of plain gradient descent."""
    sgd = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}
    sgd |= {"lr_scheduler_type": "constant", "rows": 8, "memory": 0}
    spec = {"l2": {"strength": 0.5, "towards": "base"}}
    gradients = []

    class Seen(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            assert model is not None
            gradients.append({n: p.grad.clone() for n, p in trained(model).items()})

    base = tiny_base("causal")
    began = snapshot(base.model)
    trainer = engine(base, spec, tmp_path, callbacks=[Seen()], **sgd)
    trainer.learn()
    plain, task_gradients = tiny_base("causal"), []

    class Task(Seen):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            super().on_pre_optimizer_step(args, state, control, model)
            task_gradients.append(gradients.pop())
            for n, p in trained(model).items():  # type: ignore[arg-type]
                p.grad = gradients[len(task_gradients) - 1][n].clone()

    engine(plain, "sequential", tmp_path, callbacks=[Task()], **sgd).learn()
    assert same(snapshot(plain.model), snapshot(base.model))
    assert same(gradients[0], task_gradients[0])  # at the base itself there is no pull
    moved = {n: began[n] - 0.1 * gradients[0][n] for n in began}
    for n, start in began.items():
        torch.testing.assert_close(gradients[1][n], task_gradients[1][n] + 0.5 * (moved[n] - start))
    assert not same(gradients[1], task_gradients[1])


@pytest.mark.parametrize("method", ["l2", "ewc", "mas", "si"])
def test_the_more_strength_the_nearer_to_the_old_weights(method, tmp_path):
    far = []
    for strength in (0.0, 1.0, 1e2):
        after, trainer = learned(
            "causal", {method: {"strength": strength}}, tmp_path / f"{strength}"
        )
        m = trainer.methods[0]
        precision, centre = m.parabola.precision, m.parabola.moment
        far.append(
            sum(
                (
                    (w - centre[n]).square()
                    if precision is None
                    else (precision[n] * w - centre[n]).square()
                ).sum()
                for n, w in after.items()
            ).item()
        )
    assert far[2] < far[1] < far[0]


@pytest.mark.parametrize(
    "spec",
    [
        {"l2": {"strength": -1.0}},
        {"ewc": {"decay": 2.0}},
        {"ewc": {"rows": 0}},
        {"mas": {"strength": -1.0}},
        {"ewc": {"tasks": "all"}},
    ],
    ids=str,
)
def test_what_cannot_be_is_told(spec):
    with pytest.raises(PerdureError):
        methods.make(spec)


def test_a_pull_is_part_of_the_loss_whose_importance_recurrent_kif_reads(tmp_path):
    """The outer map sees the pull in the steps on memory, so the inner one has to see it."""
    pull = {"ewc": {"strength": 10.0}}
    first, _ = learned("causal", ["recurrent_kif", pull], tmp_path / "a")
    second, _ = learned("causal", [pull, "recurrent_kif"], tmp_path / "b")
    assert same(first, second)


def begun(spec, base, state, **known):
    """A method that has begun a third task on this base, with the state of an earlier stage."""
    method = methods.make(spec)[0]
    state = {name: tensor.clone() for name, tensor in state.items()}
    method.begin_task(base.model, TaskContext("count", 3, 3, Memory({}, 5), state, **known))
    method.on_train_begin(None, None, None, model=base.model)
    return method


def of_another_rank():
    """A base whose adapter has twice the rank that the other bases' have."""
    base = tiny_base("causal")
    adapter_bank.add(base.model, 4, 0)
    adapter_bank.join(base.model)
    return base


@pytest.mark.parametrize("name", ["ewc", "mas", "si"])
def test_what_was_measured_at_another_rank_is_dropped_with_a_warning(name):
    base, state = of_another_rank(), first_stage("causal", json.dumps(name))[name]
    with pytest.warns(UserWarning, match=f"{name}: the weights have other shapes"):
        method = begun(name, base, state, is_newest=False)
    for p in trained(base.model).values():
        p.grad = torch.zeros_like(p)
    method.add_penalty(base.model)
    assert not any(p.grad.any() for p in trained(base.model).values())
    assert not method.parabola.moment


def test_l2_pulls_towards_the_weights_of_another_rank_but_not_towards_a_base_of_another(tmp_path):
    base, state = of_another_rank(), first_stage("causal", json.dumps("l2"))["l2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = begun("l2", base, state, is_newest=False)
    assert same(method.parabola.moment, snapshot(base.model))
    spec = {"l2": {"towards": "base"}}
    state = first_stage("causal", json.dumps(spec))["l2"]
    with pytest.raises(PerdureError, match="the adapter must keep its rank") as caught:
        begun(spec, base, state, is_newest=False)
    assert "\n" not in str(caught.value)


def test_only_a_head_may_have_grown():
    of_head = Parabola({"weight": torch.zeros(2, 3)}, None)
    assert of_head.fits({"weight": torch.zeros(5, 3)})
    assert not of_head.fits({"weight": torch.zeros(5, 4)})
    assert not of_head.fits({"weight": torch.zeros(1, 3)})
    of_factor = Parabola({"q.lora_A.default.weight": torch.zeros(2, 3)}, None)
    assert of_factor.fits({"q.lora_A.default.weight": torch.zeros(2, 3)})
    assert not of_factor.fits({"q.lora_A.default.weight": torch.zeros(5, 3)})


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("name", ["ewc", "mas", "si"])
def test_after_a_stage_without_it_the_centre_is_where_the_task_begins(name, kind):
    base, state = tiny_base(kind), first_stage(kind, json.dumps(name))[name]
    if kind == "encoder":
        base.model.grow(("one",), seed=1)
    for newest in (True, False):
        method = begun(name, base, state, is_newest=newest)
        assert same(method.parabola.precision, {n[2:]: p for n, p in state.items() if n[0] == "p"})
        for n, moment in method.parabola.moment.items():
            centre = trained(base.model)[n].detach()[: len(moment)]
            expected = state[f"m.{n}"] if newest else state[f"p.{n}"] * centre
            assert torch.equal(moment, expected)
    assert any(not torch.equal(m, state[f"m.{n}"]) for n, m in method.parabola.moment.items())


def test_each_task_keeps_its_centre_after_a_stage_without_ewc():
    spec = {"ewc": {"tasks": "each"}}
    state = first_stage("causal", json.dumps(spec))["ewc"]
    moment = begun(spec, tiny_base("causal"), state, is_newest=False).parabola.moment
    assert same(moment, {n[2:]: m for n, m in state.items() if n[0] == "m"})


BASE, PREVIOUS = {"l2": {"towards": "base"}}, {"l2": {"towards": "previous"}}


def test_the_centre_of_l2_follows_a_changed_setting_where_it_is_known():
    base = tiny_base("causal")
    here = snapshot(base.model)
    of_base, of_previous = (first_stage("causal", json.dumps(s))["l2"] for s in (BASE, PREVIOUS))
    for spec, state in ((BASE, of_base), (PREVIOUS, of_previous)):
        kept = begun(spec, base, state).parabola.moment
        assert same(kept, {name: state[name] for name in here})
        assert same(begun(spec, base, kept).parabola.moment, kept)  # as older versions stored it
    with pytest.raises(PerdureError, match="it must be there from the first task on"):
        begun(BASE, base, of_previous)
    assert same(begun(PREVIOUS, base, of_base).parabola.moment, here)
    assert not same({name: of_previous[name] for name in here}, here)


def test_l2_towards_the_base_begins_on_an_adapter_with_which_the_lineage_began():
    base = tiny_base("causal")
    method = begun(BASE, base, {}, is_newest=False, is_first=True)
    assert same(method.parabola.moment, snapshot(base.model))
