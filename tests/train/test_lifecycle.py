"""Methods in a list begin and end a task in the order of what they do, not of the list."""

from itertools import permutations

import pytest
import torch

from perdure import methods
from perdure.errors import PerdureError
from perdure.methods.shared.fisher import drawn_rows, fisher, relative, sensitivity
from perdure.train import lifecycle
from perdure.train.method import Method, TaskContext
from train.engine import engine, same, tiny_base, weights, whole


pytestmark = pytest.mark.own

ENDING = [n for n in methods.names() if methods.find(n).end_task is not Method.end_task]
MEASURES = {"ewc": fisher, "mas": sensitivity}
KEEPERS = ("l2", *MEASURES, "si")  # of the weights with which the next task begins


def allowed(pair) -> bool:
    needs = {methods.find(name).needs for name in pair}
    try:
        methods.make(list(pair))
    except PerdureError:
        return False
    return needs != {"lora", "whole"}


PAIRS = [pair for pair in permutations(ENDING, 2) if allowed(pair)]
KEPT = [
    pytest.param(pair, id="-".join(pair), marks=() if "l2" in pair else pytest.mark.slow)
    for pair in PAIRS
    if set(pair) & set(KEEPERS)
]


def precision_of(method, trainer, model):
    """Measured once more where it is a function of the weights; SI's is of the whole training."""
    if method.name == "si":
        return method.measure_precision(model)
    rows = drawn_rows(trainer.train_dataset, method.rows, method.context.seed)
    return relative(MEASURES[method.name](trainer, model, rows, method.context.seed))


def stage(pair, work):
    """A second task learned by the two methods and ended; the base, the engine, the old states."""
    base = tiny_base("causal", whole=whole(list(pair)))
    trainer = engine(base, list(pair), work, rows=8)
    before = {m.name: {k: t.clone() for k, t in m.context.state.items()} for m in trainer.methods}
    trainer.learn()
    lifecycle.end_task(trainer.methods, base.model)
    return base, trainer, before


def begin_next(trainer):
    """The third task, begun on the model that the second one left."""
    again = methods.make([m.name for m in trainer.methods])
    memory = trainer.methods[0].context.memory
    states = {m.name: m.state_dict() for m in trainer.methods}

    def context(method):
        return TaskContext("next", 3, 9, memory, states[method.name])

    lifecycle.begin_task(again, trainer.base.model, context)
    return again, states


@pytest.mark.parametrize("pair", KEPT)
def test_what_is_kept_are_the_weights_with_which_the_next_task_begins(pair, tmp_path):
    base, trainer, before = stage(pair, tmp_path)
    trained = weights(base).keys()
    measured = {
        m.name: precision_of(m, trainer, base.model)
        for m in trainer.methods
        if m.name in (*MEASURES, "si")
    }
    _, states = begin_next(trainer)
    start = {n: p.detach() for n, p in base.model.named_parameters() if n in trained}
    if "l2" in states:
        assert same({name: states["l2"][name] for name in start}, start)
    for name, precision in measured.items():
        old = before[name]
        for n, tensor in start.items():
            total = old[f"p.{n}"] + precision[n]
            torch.testing.assert_close(states[name][f"p.{n}"], total)
            assert torch.equal(states[name][f"m.{n}"], states[name][f"p.{n}"] * tensor)


@pytest.mark.parametrize("name", [n for n in ENDING if n != "hft"])
@pytest.mark.slow
def test_half_fine_tuning_gives_the_same_on_either_side(name, tmp_path):
    if not allowed((name, "hft")):
        pytest.skip("they do not go together")
    orders = [("hft", name), (name, "hft")] if allowed(("hft", name)) else [(name, "hft")]
    results = []
    for order in orders:
        base, trainer, _ = stage(order, tmp_path / order[0])
        results.append((weights(base), {m.name: m.state_dict() for m in trainer.methods}))
    assert same(results[0][0], results[-1][0])
    for method, state in results[0][1].items():
        assert same(state, results[-1][1][method])


OLD = {
    "lwf": lambda method: method.teacher.old,
    "feature_distillation": lambda method: method.teacher.old,
    "wise_ft": lambda method: method.before,
    "tasl": lambda method: method.before,
    "fpf": lambda method: method.start,
    "k_fpf": lambda method: method.start,
}


@pytest.mark.parametrize("changes", ["slao", "hft"])
@pytest.mark.parametrize("name", OLD)
def test_what_compares_with_the_stage_before_sees_it_whole(name, changes, tmp_path):
    if not allowed((name, changes)):
        pytest.skip("they do not go together")
    for pair in ((name, changes), (changes, name)):
        base = tiny_base("causal")
        previous = weights(base)
        trainer = engine(base, list(pair), tmp_path, rows=8)
        method = next(m for m in trainer.methods if m.name == name)
        assert same(OLD[name](method), previous)
        assert not same(weights(base), previous)  # the other one has changed them since


def test_a_base_to_return_to_is_kept_whole_by_the_first_task(tmp_path):
    for pair in (("l2", "hft"), ("hft", "l2")):
        base = tiny_base("causal")
        began = weights(base)
        keywords = {"l2": {"towards": "base"}, "hft": {"first": True}}
        trainer = engine(
            base, [{name: keywords[name]} for name in pair], tmp_path, memory=0, rows=8
        )
        trainer.learn()
        lifecycle.end_task(trainer.methods, base.model)
        l2 = next(m for m in trainer.methods if m.name == "l2")
        assert same({name: l2.state_dict()[name] for name in began}, began)
