"""Recurrent-KIF as a callback of a plain Trainer: the same weights as in Perdure's own engine."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import perdure
from marks import at_least
from methods.recurrent_kif.plain_trainer import (
    PLAIN,
    base_of,
    collator,
    farthest,
    features,
    kif_callback,
    perdure_engine,
    plain_trainer,
    run,
    trained,
)
from perdure import methods
from perdure.errors import PerdureError
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.models.base import Base
from tiny import tiny_model, tiny_tokenizer
from train.engine import Stop, Stopped, same


ROUNDS = {"inner_steps": 4, "outer_steps": 2}
NEUTRAL = methods.find("recurrent_kif").neutral


# --- it is the same method


@pytest.mark.parametrize(
    ("kind", "accumulation", "trainer", "arguments"),
    [
        ("causal", 1, Trainer, TrainingArguments),
        ("causal", 2, Trainer, TrainingArguments),
        ("seq2seq", 1, Trainer, TrainingArguments),
        ("seq2seq", 1, Seq2SeqTrainer, Seq2SeqTrainingArguments),
        ("encoder", 1, Trainer, TrainingArguments),
    ],
)
def test_a_callback_ends_in_the_weights_of_perdures_own_engine(
    kind, accumulation, trainer, arguments, tmp_path
):
    settings = {"rows": 44, "gradient_accumulation_steps": accumulation}
    theirs = {"trainer": trainer, "arguments": arguments}
    method = kif_callback(kind, **ROUNDS)
    ours = run(kind, tmp_path, method, **settings, **theirs)
    base = base_of(kind)
    engine = perdure_engine(base, tmp_path, ROUNDS, **settings)
    engine.learn()
    assert len(method.shares) == len(engine.methods[0].shares) == (3, 2)[accumulation - 1]
    farthest_off, far = farthest(ours, trained(base.model))
    assert farthest_off < 1e-6
    assert not far


@pytest.mark.parametrize("off", [{"max_grad_norm": 0.0}, {"weight_decay": 0.0}])
@pytest.mark.own
def test_clipping_and_weight_decay_bind_in_these_runs(off, tmp_path):
    assert not same(
        run("causal", tmp_path, kif_callback("causal", **ROUNDS)),
        run("causal", tmp_path, kif_callback("causal", **ROUNDS), **off),
    )


@pytest.mark.own
def test_a_full_model_is_learned_as_by_the_engine(tmp_path):
    ours, theirs = (
        Base("t", "causal", tiny_model("causal"), tiny_tokenizer("causal")) for _ in "ab"
    )
    run("causal", tmp_path, kif_callback("causal", **ROUNDS), ours)
    perdure_engine(theirs, tmp_path, ROUNDS).learn()
    assert farthest(trained(ours.model), trained(theirs.model))[0] < 1e-6


@pytest.mark.parametrize("keywords", [{"outer_optimizer": "shared"}, {"preset": "release"}])
@pytest.mark.own
def test_other_keywords_do_the_same_in_both(keywords, tmp_path):
    preset = RecurrentKIF.presets.get(keywords.get("preset"), keywords)
    base = base_of("causal")
    perdure_engine(base, tmp_path, {**preset, **ROUNDS}).learn()
    ours = run("causal", tmp_path, kif_callback("causal", **{**preset, **ROUNDS}))
    assert farthest(ours, trained(base.model))[0] < 1e-6


@pytest.mark.own
def test_memory_is_a_dataset_or_one_a_task_and_may_have_columns_of_its_own(tmp_path):
    rows = [{**row, "origin": "old"} for row in features("causal", "animal", 6)]

    def learned(memory):
        train = Dataset.from_list([{**r, "note": "new"} for r in features("causal", "colour", 32)])
        base = base_of("causal")
        args = TrainingArguments(output_dir=str(tmp_path), **PLAIN)
        callback = RecurrentKIF(memory=memory, **ROUNDS)
        Trainer(
            base.model,
            args,
            train_dataset=train,
            data_collator=collator(base),
            callbacks=[callback],
        ).train()
        return trained(base.model)

    listed = learned(rows)
    assert same(listed, learned(Dataset.from_list(rows)))
    assert same(listed, learned({"memory": Dataset.from_list(rows)}))
    assert not same(listed, learned({"a": rows[:2], "b": rows[2:]}))  # balanced over the tasks


# --- it leaves the Trainer as it was


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
@pytest.mark.parametrize("memory", [None, []])
def test_without_memory_it_is_plain_training_bitwise(kind, memory, tmp_path):
    plain = run(kind, tmp_path)
    assert same(plain, run(kind, tmp_path, RecurrentKIF(memory=memory, **ROUNDS)))


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_neutral_keywords_leave_the_trainers_weights_and_draws_bitwise(kind, tmp_path):
    plain = run(kind, tmp_path)
    assert same(plain, run(kind, tmp_path, kif_callback(kind, **{**ROUNDS, **NEUTRAL})))


@pytest.mark.own
def test_importance_is_of_complete_gradients_before_clipping(tmp_path):
    gradients = []

    class Seeing(RecurrentKIF):
        def edit_gradients(self, model):
            gradients.append([p.grad.clone() for p in self.parameters])
            super().edit_gradients(model)

    class After(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            clipped.append([p.grad.clone() for p in model.parameters() if p.requires_grad])

    clipped = []
    memory = features("causal", "animal", 6)
    callbacks = [Seeing(memory=memory, **ROUNDS), After()]
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 1e-3}
    run("causal", tmp_path, callbacks=callbacks, **settings)
    assert len(gradients) == len(clipped) == 5
    for whole, small in zip(gradients, clipped, strict=True):
        whole, small = (torch.cat([g.flatten() for g in side]) for side in (whole, small))
        assert float(small.norm()) == pytest.approx(1e-3, rel=1e-3)
        torch.testing.assert_close(whole / whole.norm(), small / small.norm())
        assert whole.norm() > 0.01


def test_nothing_is_left_behind_and_the_callback_can_train_again(tmp_path):
    base, method = base_of("causal"), kif_callback("causal", **ROUNDS)
    first = run("causal", tmp_path, method, base)
    assert not any(p._post_accumulate_grad_hooks for p in base.model.parameters())
    assert method.steps is None
    assert not hasattr(method, "rounds")
    assert same(first, run("causal", tmp_path, method))


def test_a_training_that_broke_off_leaves_no_hooks_in_the_next(tmp_path):
    method = kif_callback("causal", **ROUNDS)
    with pytest.raises(Stopped):
        run("causal", tmp_path, method, callbacks=[Stop(3)])
    again = run("causal", tmp_path, method)
    assert same(again, run("causal", tmp_path, kif_callback("causal", **ROUNDS)))


def test_after_another_trainer_it_works_in_perdures_engine(tmp_path):
    run("causal", tmp_path, kif_callback("causal", **ROUNDS))
    base = base_of("causal")
    method = perdure_engine(base, tmp_path, ROUNDS).methods[0]
    assert method.steps is None
    keywords = methods.keywords("recurrent_kif").keys()
    of_neither = {"refresh", "shuffled", "states", "offload"}  # not `memory`, as for a Trainer
    assert keywords == {*RecurrentKIF.presets["paper"], *of_neither}
    with pytest.raises(PerdureError, match="no keyword 'memory'"):
        methods.make({"recurrent_kif": {"memory": []}})
    assert perdure.RecurrentKIF is RecurrentKIF


# --- saving and resuming


def test_the_last_partial_round_is_in_the_last_checkpoint(tmp_path):
    # pruning everything brings the weights back to where training started, also after 4 + 4 + 2
    prune = {"fusion": dict.fromkeys(("both", "inner", "outer", "neither"), (0, 0))}
    base = base_of("causal")
    start = trained(base.model)
    final = run(
        "causal", tmp_path, kif_callback("causal", **ROUNDS, **prune), base, save_strategy="epoch"
    )
    assert same(final, start)
    checkpoint = load_file(tmp_path / "checkpoint-10" / "adapter_model.safetensors")
    assert checkpoint
    for name, tensor in checkpoint.items():
        stem, _, last = name.rpartition(".")
        assert torch.equal(tensor, start[f"{stem}.default.{last}"])


RESUMED = [
    ("causal", {}, {}),
    ("causal", {"preset": "release"}, {"gradient_accumulation_steps": 2, "rows": 80}),
    ("causal", {"outer_optimizer": "shared"}, {"num_train_epochs": 2, "rows": 20}),
    ("seq2seq", {}, {}),
    ("encoder", {}, {}),
]


@pytest.mark.parametrize(
    ("kind", "keywords", "settings", "at", "every"),
    at_least(
        [(*case, 5, 3) for case in RESUMED[:3]],
        [(*case, *stop) for case in RESUMED for stop in ((5, 3), (8, 4))],
    ),
)
@pytest.mark.own
def test_a_resumed_run_ends_in_the_same_weights(kind, keywords, settings, at, every, tmp_path):
    keywords = {**RecurrentKIF.presets.get(keywords.get("preset"), keywords), **ROUNDS}
    saving = {"save_strategy": "steps", "save_steps": every, **settings}
    whole = run(kind, tmp_path / "whole", kif_callback(kind, **keywords), **saving)
    work = tmp_path / "again"
    with pytest.raises(Stopped):
        run(kind, work, kif_callback(kind, **keywords), callbacks=[Stop(at)], **saving)
    base = base_of(kind)
    plain_trainer(base, work, kif_callback(kind, **keywords), **saving).train(
        resume_from_checkpoint=True
    )
    assert same(whole, trained(base.model))


def test_without_its_saved_state_or_with_anothers_it_refuses_to_resume(tmp_path):
    def resume(work):
        base = base_of("causal")
        plain_trainer(base, work, kif_callback("causal", **ROUNDS)).train(
            resume_from_checkpoint=str(checkpoint)
        )

    saving = {"save_strategy": "steps", "save_steps": 3}
    run("causal", tmp_path / "plain", **saving)
    run("causal", tmp_path / "ours", kif_callback("causal", **ROUNDS), **saving)
    checkpoint = tmp_path / "plain" / "checkpoint-6"
    for work, message in (("plain", "method.safetensors is missing"), ("ours", "other weights")):
        with pytest.raises(PerdureError, match=message) as caught:
            resume(tmp_path / work)
        assert "\n" not in str(caught.value)
        assert "step 6" in str(caught.value)
