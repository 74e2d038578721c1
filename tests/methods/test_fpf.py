"""FPF: which modules a burst trains, on which rows, and that nothing else hears of it."""

import math

import pytest
import torch

from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.shared.memory_steps import changed_most, modules
from tiny import KINDS
from train.engine import engine, tiny_base, weights


pytestmark = pytest.mark.own


def burst(kind, tmp_path, whole=False, **keywords):
    """The weights before and after the burst at the end of a task, and the engine."""
    base = tiny_base(kind, whole=whole)
    trainer = engine(base, {"fpf": keywords}, tmp_path)
    trainer.learn()
    before = weights(base)
    trainer.methods[0].end_task(base.model)
    return before, weights(base), trainer


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_modules_with_the_largest_mean_change_are_chosen_by_hand():
    start = {"a.weight": torch.zeros(2, 4), "a.bias": torch.zeros(2), "b.weight": torch.zeros(1)}
    start |= {"c.lora_A.default.weight": torch.zeros(2), "c.lora_B.default.weight": torch.zeros(2)}
    now = {
        "a.weight": torch.tensor([[-1.0] * 4, [0.0] * 4]),  # 4 of 8, with its bias 10 of 10
        "a.bias": torch.tensor([3.0, -3.0]),
        "b.weight": torch.tensor([-0.9]),
        "c.lora_A.default.weight": torch.tensor([0.0, 0.0]),  # 0.75 in the mean, with B
        "c.lora_B.default.weight": torch.tensor([3.0, 0.0]),
    }
    assert changed_most(now, start, 0.34) == ["a.weight", "a.bias"]
    assert changed_most(now, start, 0.01) == ["a.weight", "a.bias"]  # one at least
    assert changed_most(now, start, 0.67) == ["a.weight", "a.bias", "b.weight"]
    assert set(changed_most(now, start, 1.0)) == set(start)


def test_a_module_is_what_holds_a_weight():
    assert list(modules(["x.1.q.lora_A.default.weight", "x.1.q.lora_B.default.weight"])) == [
        "x.1.q"
    ]
    assert list(modules(["x.q.weight", "x.q.bias", "x.norm.weight"])) == ["x.q", "x.norm"]
    assert modules(["weight", "bias"]) == {"": ["weight", "bias"]}  # an encoder's head


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_modules_that_changed_most_are_trained(kind, whole, tmp_path):
    start = weights(tiny_base(kind, whole=whole))
    before, after, trainer = burst(kind, tmp_path, whole, share=0.3)
    change = {}
    for module, names in modules(start).items():
        now, then = (torch.cat([w[n].flatten() for n in names]) for w in (before, start))
        change[module] = (now - then).abs().mean().item()
    border = sorted(change.values(), reverse=True)[int(0.3 * len(change)) - 1]
    chosen = {n for m, names in modules(start).items() if change[m] >= border for n in names}
    assert 0 < len(chosen) < len(start)
    assert moved(before, after) == chosen
    assert all(p.grad is None and p.requires_grad for p in trainer.parameters)
    assert trainer.methods[0].state_dict() == {}


def test_it_draws_rows_for_each_step_and_the_trainer_keeps_its_moments(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"fpf": {"steps": 3, "rows": 5}}, tmp_path)
    trainer.learn()
    drawn, memory = [], trainer.methods[0].context.memory
    original = memory.draw
    memory.draw = lambda start, n: drawn.append((start, n)) or original(start, n)
    moments = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
    draws = torch.random.get_rng_state()
    trainer.methods[0].end_task(base.model)
    assert drawn == [(0, 5), (5, 5), (10, 5)]
    assert moments
    after = [v for s in trainer.optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert torch.equal(draws, torch.random.get_rng_state())


@pytest.mark.parametrize(("rows", "memory", "count"), [(None, 9, 8), (5, 9, 5), (None, 6, 6)])
def test_a_step_takes_the_trainings_batch_if_it_is_not_told_otherwise(
    rows, memory, count, tmp_path
):
    base = tiny_base("encoder")
    settings = {"memory": memory, "gradient_accumulation_steps": 2}
    trainer = engine(base, {"fpf": {"rows": rows}}, tmp_path, **settings)
    trainer.learn()
    sizes = []
    trainer.fit_step = lambda rows, *rest: sizes.append(len(rows))
    trainer.methods[0].end_task(base.model)
    assert sizes == [count] * 16


def test_a_step_is_adamws_of_the_chosen_alone_clipped_alone(tmp_path):
    base = tiny_base("causal")
    clip, rate = 1e-3, 0.02
    keywords = {"steps": 1, "learning_rate": rate, "share": 0.3}
    trainer = engine(base, {"fpf": keywords}, tmp_path, max_grad_norm=clip)
    trainer.learn()
    before, clipped = weights(base), {}
    original = trainer.accelerator.clip_grad_norm_

    def watched(parameters, norm):
        total = original(parameters, norm)
        clipped.update({id(p): p.grad for p in parameters if p.grad is not None})
        return total

    trainer.accelerator.clip_grad_norm_ = watched
    trainer.methods[0].end_task(base.model)
    after = weights(base)
    names = {name for name, p in base.model.named_parameters() if id(p) in clipped}
    assert names == moved(before, after)
    norm = torch.stack([gradient.norm() for gradient in clipped.values()]).norm()
    torch.testing.assert_close(norm, torch.tensor(clip), rtol=1e-3, atol=0)
    change = torch.cat([(after[n] - before[n]).flatten() for n in names])
    assert change.abs().max() <= rate * 1.001  # a first step of Adam, without weight decay
    assert change.abs().median() > 0.5 * rate


@pytest.mark.parametrize(
    ("schedule", "keyword", "expected"),
    [
        ("linear", None, [4e-3, 3e-3, 2e-3, 1e-3]),
        ("constant", None, [4e-3] * 4),
        ("linear", 1e-4, [1e-4] * 4),  # one's own rate is constant
        ("reduce_lr_on_plateau", None, [4e-3] * 4),
    ],
)
def test_the_burst_goes_through_the_trainings_schedule(schedule, keyword, expected, tmp_path):
    keywords = {"steps": 4, "learning_rate": keyword}
    base = tiny_base("encoder")
    settings = {"learning_rate": 4e-3, "warmup_steps": 2, "lr_scheduler_type": "linear"}
    trainer = engine(base, {"fpf": keywords}, tmp_path, rows=12, **settings)
    trainer.learn()
    trainer.args.lr_scheduler_type = schedule
    rates, fit = [], trainer.fit_step

    def watched(rows, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        fit(rows, optimizer, *rest)

    trainer.fit_step = watched
    trainer.methods[0].end_task(base.model)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("rate", [1e-4, 5e-3])
def test_a_lowest_rate_is_that_of_the_training(rate, tmp_path):
    """Transformers writes these as a share of the optimizer's own rate."""
    settings = {"learning_rate": rate, "lr_scheduler_type": "cosine_with_min_lr"}
    settings |= {"lr_scheduler_kwargs": {"min_lr": rate / 2}}
    trainer = engine(tiny_base("causal"), {"fpf": {"steps": 5}}, tmp_path, rows=12, **settings)
    trainer.learn()
    rates, fit = [], trainer.fit_step

    def watched(rows, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        fit(rows, optimizer, *rest)

    trainer.fit_step = watched
    trainer.methods[0].end_task(trainer.base.model)
    cosines = [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)]
    assert rates == pytest.approx([rate * (0.5 + 0.5 * cosine) for cosine in cosines])


def test_it_lowers_the_loss_on_remembered_rows(tmp_path):
    base = tiny_base("causal", whole=True)
    trainer = engine(base, "fpf", tmp_path)
    trainer.learn()
    rows = trainer.methods[0].context.memory.draw(0, 6)
    batch, _ = trainer.look(rows)
    before, _ = trainer.task_loss(base.model, batch)
    trainer.methods[0].end_task(base.model)
    base.model.eval()
    after, _ = trainer.task_loss(base.model, batch)
    assert after < 0.8 * before


def test_weights_that_another_method_froze_are_left_out(tmp_path):
    for spec in (["hft", {"fpf": {"share": 1.0}}], [{"fpf": {"share": 1.0}}, "hft"]):
        base = tiny_base("causal")
        trainer = engine(base, spec, tmp_path)
        frozen = {n for n, p in base.model.named_parameters() if ".lora_" in n} - set(weights(base))
        before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
        trainer.learn()
        for method in trainer.methods:
            method.end_task(base.model)
        assert frozen
        assert not frozen & moved(before, {n: p.detach() for n, p in base.model.named_parameters()})


@pytest.mark.parametrize("name", ["fpf", "k_fpf"])
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"share": 0.0}, "0 < share <= 1"),
        ({"share": 1.1}, "0 < share <= 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"rows": 0}, "rows >= 1"),
        ({"learning_rate": 0.0}, "above 0"),
    ],
)
def test_a_wrong_keyword_is_told(name, keywords, message):
    with pytest.raises(PerdureError, match=f"{name}: .*{message}"):
        make({name: keywords})
