"""What every method must hold, on a Llama-, a T5- and a BERT-shaped model.

`pytest tests/methods/test_methods.py --method NAME` runs all of it for one method. Without the
option most methods are tried on the Llama alone; on the other models they are marked `slow`.
"""

import functools
import importlib.util
import inspect
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from perdure import methods
from perdure.errors import PerdureError
from perdure.train import lifecycle
from perdure.train.trainer import load_state
from tiny import KINDS
from train.engine import (
    engine,
    learned,
    odd_base,
    same,
    stopped_and_resumed,
    tiny_base,
    weights,
    whole,
)


pytestmark = pytest.mark.own
EVERY = methods.names()
# There, inflora chooses and freezes the factors A, self_replay rehearses what the base writes, and
# finch has rates of its own.
FROM_THE_FIRST_TASK = ("finch", "inflora", "self_replay")
# Together they rehearse, take side gradients, edit gradients and measure the weights they end with.
ON_EVERY_KIND = ("sequential", "replay", "recurrent_kif", "ewc")


def on_kinds(names, *more, always=ON_EVERY_KIND):
    """Parameters (name, kind, *more) of the kinds on which each method works.

    Most are `slow` but on the causal model; the methods `always` are not.
    """
    return [
        pytest.param(
            *(name, kind, *more),
            marks=() if kind == "causal" or name in always else pytest.mark.slow,
        )
        for name in names
        for kind in KINDS
        if all(kind in method.kinds for method in methods.make(name))
    ]


@functools.cache
def sequential(kind: str, memory: int = 6, whole: bool = False) -> dict[str, torch.Tensor]:
    """The weights of the sequential run."""
    base = tiny_base(kind, 0.1, whole)
    with tempfile.TemporaryDirectory() as work:
        engine(base, "sequential", Path(work), memory=memory).learn()
    return weights(base)


def ended(kind: str, method, work, **settings):
    """As `learned`, with the end of the task."""
    _, trainer = learned(kind, method, work, **settings)
    lifecycle.end_task(trainer.methods, trainer.base.model)
    return weights(trainer.base), trainer


@dataclass(frozen=True)
class Run:
    """A task learned after a first one, with checkpoints: several tests look at the same run."""

    learned: dict[str, torch.Tensor]  # the weights after the last step
    ended: dict[str, torch.Tensor]  # those with which the stage ends
    states: list[dict[str, torch.Tensor]]  # what each method then stores
    checkpoint: dict[str, torch.Tensor]  # what the first method stored after step 9, if it is one


@functools.cache
def _run(kind: str, method: str, every: int) -> Run:
    with tempfile.TemporaryDirectory() as work:
        learned_weights, trainer = learned(
            kind, json.loads(method), Path(work), checkpoint_every=every
        )
        folder = Path(work) / "checkpoint-9"
        checkpoint = load_state(trainer.methods[0], folder) if folder.exists() else {}
    lifecycle.end_task(trainer.methods, trainer.base.model)
    states = [{k: t.clone() for k, t in m.state_dict().items()} for m in trainer.methods]
    return Run(learned_weights, weights(trainer.base), states, checkpoint)


def run(kind: str, method, every: int = 3) -> Run:
    """The run of a method, a checkpoint after `every` third step."""
    return _run(kind, json.dumps(method), every)


@pytest.mark.parametrize(
    ("name", "kind"),
    on_kinds(name for name in EVERY if methods.find(name).neutral is not None),
)
def test_neutral_keywords_give_the_sequential_run_bitwise(name, kind, tmp_path):
    neutral = methods.find(name).neutral
    plain = sequential(kind, whole=whole(name))
    ours, trainer = ended(kind, {name: neutral}, tmp_path)
    assert trainer.methods[0].name == name
    assert same(plain, ours)


@pytest.mark.parametrize(
    ("name", "kind"), on_kinds((name for name in EVERY if name != "sequential"), always=())
)
def test_with_its_defaults_a_method_does_something(name, kind):
    plain = sequential(kind, whole=whole(name))
    assert not same(plain, run(kind, {name: {}}).ended)


@pytest.mark.parametrize(
    ("name", "kind"),
    on_kinds((name for name in EVERY if name not in FROM_THE_FIRST_TASK), always=()),
)
def test_the_first_task_without_memory_is_plain_fine_tuning_bitwise(name, kind, tmp_path):
    plain = sequential(kind, memory=0, whole=whole(name))
    ours, _ = ended(kind, name, tmp_path, memory=0)
    assert same(plain, ours)


# Stopped between checkpoints on every kind; where rounds and draws have a rhythm, elsewhere too.
STOPS = [
    pytest.param({name: {}}, kind, 4, 3, marks=marks)
    for name, kind, marks in (
        (*parameters.values, parameters.marks) for parameters in on_kinds(EVERY)
    )
]
RHYTHMS = [
    {"recurrent_kif": {}},
    {"recurrent_kif": {"preset": "release", "inner_steps": 4}},
    {"recurrent_kif": {"outer_optimizer": "shared", "inner_steps": 2}},
    {"replay": {"ratio": 0.3}},
]
STOPS += [(method, "causal", *place) for method in RHYTHMS for place in ((6, 6), (9, 4))]


@pytest.mark.parametrize(("method", "kind", "at", "every"), STOPS, ids=str)
def test_a_run_stopped_inside_a_task_ends_in_the_same_weights(method, kind, at, every, tmp_path):
    whole = run(kind, method, every)
    again, trainer = stopped_and_resumed(kind, method, tmp_path, at, every)
    assert same(whole.learned, again)
    lifecycle.end_task(trainer.methods, trainer.base.model)
    assert same(whole.ended, weights(trainer.base))
    for state, method in zip(whole.states, trainer.methods, strict=True):
        assert same(state, method.state_dict())


@pytest.mark.parametrize(("name", "kind"), on_kinds(EVERY, always=("recurrent_kif",)))
def test_two_micro_batches_of_4_are_one_batch_of_8(name, kind, tmp_path):
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    one, _ = learned(kind, name, tmp_path / "a", dropout=0.0, **sizes)
    two, _ = learned(kind, name, tmp_path / "b", dropout=0.0, **halves)
    for parameter, tensor in one.items():
        torch.testing.assert_close(two[parameter], tensor, atol=2e-5, rtol=1e-4)


class Watch(TrainerCallback):
    """Checks what a method declares after every step; comes after the methods themselves."""

    checks = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.check()
        self.checks += 1


def declared(name: str):
    """`invariant(made)` of the method's own test file, which returns the check; None if none."""
    if importlib.util.find_spec(f"methods.test_{name}") is None:
        return None
    return getattr(importlib.import_module(f"methods.test_{name}"), "invariant", None)


ALONE = [name for name in EVERY if declared(name)]
WITH = [
    (name, more) for name in ALONE for more in ("replay", "l2") if not methods.find(name).reshapes
]


@pytest.mark.parametrize(
    ("method", "kind"),
    on_kinds([*ALONE, *map(list, WITH)]),
    ids=str,
)
def test_what_a_method_declares_holds_after_every_step_of_adamw(method, kind, tmp_path):
    watch = Watch()
    trainer = engine(tiny_base(kind, 0.1, whole(method)), method, tmp_path, callbacks=[watch])
    watch.check = declared(trainer.methods[0].name)(trainer)
    trainer.learn()
    assert watch.checks == 10


# tests/train/test_lifecycle.py tries l2 beside all that do something at the end of a task.
PAIRS = [
    pytest.param([name, more], marks=pytest.mark.slow if more == "l2" else ())
    for name in EVERY
    for more in ("replay", "l2")
    if name not in ("sequential", more) and not methods.find(name).reshapes
]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_method_composes_with_replay_and_l2(pair, tmp_path):
    both, trainer = ended("causal", pair, tmp_path)
    assert [m.name for m in trainer.methods] == pair
    assert not same(both, run("causal", {pair[0]: {}}).ended)
    assert all(torch.isfinite(tensor).all() for tensor in both.values())


@pytest.mark.parametrize("name", EVERY)
def test_tied_embeddings_biases_and_a_base_in_bf16(name, tmp_path):
    base = odd_base(whole(name))
    before = weights(base)
    trainer = engine(base, name, tmp_path, rows=12, bf16=True)
    trainer.learn()
    trainer.methods[0].end_task(base.model)
    after = weights(base)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert not same(before, after)


@pytest.mark.parametrize("name", EVERY)
def test_what_it_keeps_and_needs_stands_in_its_description(name):
    description = " ".join((inspect.getdoc(methods.find(name)) or "").split())
    assert "State: " in description or name == "sequential"
    assert ("Old rows: needed" in description) == methods.find(name).rehearses
    assert methods.find(name).neutral is not None or "no neutral keywords" in description


@pytest.mark.parametrize("name", EVERY)
def test_state_survives_safetensors(name, tmp_path):
    """What a checkpoint holds comes back whole into a method that has taken other steps."""
    checkpoint = run("causal", {name: {}}).checkpoint
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.values())

    class Load(TrainerCallback):
        loaded = 0

        def on_step_end(self, args, state, control, **kwargs):
            method.load_state_dict({key: tensor.clone() for key, tensor in checkpoint.items()})
            assert same(method.state_dict(), checkpoint)
            self.loaded += 1
            control.should_training_stop = True

    load = Load()
    trainer = engine(tiny_base("causal", 0.1, whole(name)), name, tmp_path, callbacks=[load])
    method = trainer.methods[0]
    trainer.learn()
    assert load.loaded == 1


def test_replay_adds_the_rows_of_its_ratio_and_keeps_the_number_of_steps(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"replay": {"ratio": 0.75}}, tmp_path, rows=40)
    sizes, original = [], trainer.rehearsal.collator.__class__.__call__

    class Counting:
        def __call__(self, features):
            sizes.append(len(features))
            return original(trainer.collate, features)

    trainer.rehearsal.collator = Counting()
    trainer.learn()
    assert trainer.state.global_step == 10
    assert sizes == [7] * 10  # 4 new and 3 remembered


def test_replay_passes_as_many_memory_rows_as_recurrent_kif(tmp_path):
    drawn = {}
    for name in ("replay", "recurrent_kif"):
        base = tiny_base("causal")
        trainer = engine(base, name, tmp_path / name, rows=64)  # 16 steps: two whole rounds
        memory, count = trainer.methods[0].context.memory, []
        original = memory.draw
        memory.draw = lambda start, n, original=original, count=count, **named: (
            count.append(n),
            original(start, n, **named),
        )[1]
        trainer.learn()
        drawn[name] = sum(count)
    assert drawn["replay"] == drawn["recurrent_kif"] == 32


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("recurent_kif", "did you mean 'recurrent_kif'"),
        ({"replay": {"ration": 1}}, "did you mean 'ratio'"),
        ({"replay": {"ratio": "much"}}, "takes a number"),
        ({"recurrent_kif": {"preset": "papper"}}, "did you mean 'paper'"),
        ({"recurrent_kif": {"score": "sensitivty"}}, "did you mean 'sensitivity'"),
        ({"recurrent_kif": {"fusion": {"both": [1, 1]}}}, "takes the cases"),
        ({"recurrent_kif": {"quantile": 2}}, "quantile"),
        (["replay", "replay"], "named twice"),
        (["hft", "slao"], "slao changes every LoRA pair .*, also those that hft freezes"),
        (["slao", "fpf"], "slao rotates every A before a task, which fpf would take"),
        (["slao", {"k_fpf": {"k": 2}}], "which k_fpf would take for changes of the task"),
        (["inflora", {"recurrent_kif": {"unit": "row"}}], "inflora trains no A; leave unit out"),
        (3, "expected a name"),
    ],
)
def test_a_wrong_method_is_told_in_one_line(spec, message):
    with pytest.raises(PerdureError, match=message) as caught:
        methods.make(spec)
    assert "\n" not in str(caught.value)


def test_methods_compose_in_a_list(tmp_path):
    both, trainer = learned("causal", ["replay", "recurrent_kif"], tmp_path / "a")
    alone, _ = learned("causal", "recurrent_kif", tmp_path / "b")
    assert [m.name for m in trainer.methods] == ["replay", "recurrent_kif"]
    assert not same(both, alone)
