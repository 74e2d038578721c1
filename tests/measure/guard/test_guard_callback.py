"""The guard as a callback of a Trainer and of TRL's SFTTrainer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import TEMPLATE
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import perdure
from methods.recurrent_kif.plain_trainer import (
    PLAIN,
    base_of,
    plain_trainer,
    trained,
)
from perdure import Guard
from perdure.errors import PerdureError
from perdure.measure.guard.callback import has_untouched_base
from perdure.measure.guard.guard import ask, compare, guard
from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.guard.subject import Subject
from perdure.models.base import Base
from tiny import tiny_model, tiny_rows, tiny_tokenizer
from train.engine import same


# TRL 1.16 has a default under a name that transformers 5.23 has changed; nothing of ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)

# In the plain form the untrained model answers all of them with "right".
RECORDS = [
    {
        "id": f"{number}",
        "skill": ("up", "down")[number % 2],
        "prompt": row["prompt"].strip(),
        "check": {"says": ["right"]},
    }
    for number, row in enumerate(tiny_rows("colour", 12))
]
FEW: dict[str, Any] = {"rows": RECORDS, "max_new_tokens": 2}
LEARNS = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "num_train_epochs": 2}


both_kinds = pytest.mark.parametrize(
    "kind", ["causal", pytest.param("seq2seq", marks=pytest.mark.slow)]
)


def whole_base(kind: str = "causal") -> Base:
    return Base("t", kind, tiny_model(kind), tiny_tokenizer(kind))  # type: ignore[arg-type]


def quiet(**keywords: Any) -> Guard:
    return Guard(**{**FEW, "say": lambda line: None, **keywords})


def train(base: Base, work: Path, callback: Any = None, **settings: Any) -> Any:
    """A trained Trainer, which knows the tokenizer."""
    trainer = plain_trainer(base, work, callback, **settings)
    trainer.callback_handler.processing_class = base.tokenizer
    trainer.train()
    return trainer


class Weights(TrainerCallback):
    """Keeps the trainable weights after each step."""

    def __init__(self):
        self.at = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.at[state.global_step] = trained(model)


# --- it leaves the training as it was


@pytest.mark.parametrize("base_with", [base_of, whole_base], ids=["adapter", "whole"])
@both_kinds
def test_training_is_bitwise_the_same_with_it(base_with, kind, tmp_path):
    plain, guarded = base_with(kind), base_with(kind)  # an adapter has dropout
    for name, parameter in [*plain.model.named_parameters(), *guarded.model.named_parameters()]:
        if "layers.0" in name or "block.0" in name:
            parameter.requires_grad_(False)  # and it must stay frozen
    train(plain, tmp_path)
    modes = [module.training for module in guarded.model.modules()]
    flags = [parameter.requires_grad for parameter in guarded.model.parameters()]
    callback = quiet(every=3)
    train(guarded, tmp_path, callback)
    assert [result["step"] for result in callback.results] == [3, 6, 9, 10]
    assert same(trained(plain.model), trained(guarded.model))
    assert modes == [module.training for module in guarded.model.modules()]
    assert flags == [parameter.requires_grad for parameter in guarded.model.parameters()]


@pytest.mark.own
def test_weights_that_change_when_training_ends_are_measured_again(tmp_path):
    class Halved(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            for parameter in model.parameters():
                parameter.data.mul_(0.5 if parameter.requires_grad else 1)

    base, callback = base_of("causal"), quiet(every=10)
    train(base, tmp_path, Halved(), callbacks=[callback])
    assert [result["step"] for result in callback.results] == [10, 10]
    again = quiet(every=10)
    train(base, tmp_path, again)
    assert [result["step"] for result in again.results] == [10]


# --- what is measured


@both_kinds
def test_with_an_adapter_it_is_the_guard_against_the_base(kind, tmp_path):
    base, lines = base_of(kind), []
    callback = Guard(**FEW, say=lines.append)
    trainer = train(base, tmp_path, callback, **LEARNS)
    (result,) = callback.results
    expected = guard(
        Subject("the base", base, base.peft.disable_adapter),
        Subject("step 20", base),
        read_guard_rows(RECORDS),
        max_new_tokens=2,
    )
    assert result == {"step": 20, **expected}
    assert result["kl"] > 0
    assert lines == result["verdict"]
    (logged,) = [entry for entry in trainer.state.log_history if "guard/net" in entry]
    names = ("net", "kl", "passed")
    assert [logged[f"guard/{name}"] for name in names] == [result[name] for name in names]
    assert (logged["step"], logged["epoch"]) == (20, 2)


def test_without_an_adapter_it_is_compared_with_the_model_before_training(tmp_path):
    base, rows = whole_base(), read_guard_rows(RECORDS)
    before = ask(Subject("a copy", copy.deepcopy(base)), rows, in_template=False, max_new_tokens=2)
    callback = quiet()
    trainer = train(base, tmp_path, callback, **LEARNS)
    now = ask(Subject("now", base), rows, in_template=False, max_new_tokens=2)
    (result,) = callback.results
    assert result | compare(rows, before, now) == result
    assert result["lost"]
    assert result["kl"] is None
    assert result["verdict"][1] == (
        "KL from the model before training: not measured, because its weights were not kept"
    )
    assert not any("guard/kl" in entry for entry in trainer.state.log_history)


def test_a_base_of_which_weights_are_trained_too_is_not_untouched():
    def adapted(**keywords: Any) -> Any:
        config = LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", **keywords)
        return get_peft_model(tiny_model("seq2seq"), config)

    assert has_untouched_base(adapted())
    assert has_untouched_base(adapted(modules_to_save=["layer_norm"]))
    assert not has_untouched_base(tiny_model("seq2seq"))
    partly = adapted()
    partly.get_parameter("base_model.model.encoder.final_layer_norm.weight").requires_grad_(True)
    assert not has_untouched_base(partly)
    assert not has_untouched_base(adapted(init_lora_weights="pissa"))


def test_its_metrics_go_where_the_trainer_reports_to(tmp_path):
    class Reported(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(sorted(key for key in logs if key.startswith("guard/")))

    base, callback, seen = base_of("causal"), quiet(every=6), []
    trainer = plain_trainer(base, tmp_path, callbacks=[Reported(), callback])
    trainer.callback_handler.processing_class = base.tokenizer
    callback.trainer = trainer
    trainer.train()
    assert [names for names in seen if names] == [["guard/kl", "guard/net", "guard/passed"]] * 2
    silent = quiet(log=False)
    trainer = train(base_of("causal"), tmp_path, silent)
    assert not any("guard/net" in entry for entry in trainer.state.log_history)


# --- stop and keep_best


def test_training_stops_where_general_ability_is_lost(tmp_path):
    callback = quiet(every=2, stop=True)
    trainer = train(whole_base(), tmp_path, callback, **{**LEARNS, "learning_rate": 1e-3})
    assert trainer.state.global_step == callback.results[-1]["step"] < 20
    assert [result["lost"] for result in callback.results[-2:]] == [False, True]


@pytest.mark.parametrize("base_with", [base_of, whole_base], ids=["adapter", "whole"])
def test_the_best_measured_weights_are_restored(base_with, tmp_path):
    base, weights, lines = base_with("causal"), Weights(), []
    callback = Guard(**FEW, every=1, keep_best=True, say=lines.append)
    rate = 1e-3 if base.whole else 1e-2
    settings = {**LEARNS, "learning_rate": rate, "max_steps": 6}
    train(base, tmp_path, callback, callbacks=[weights], **settings)
    results = [result for result in callback.results if not result["lost"]]
    assert len(results) < len(callback.results)
    lowest = min((result["net"], result["kl"] or 0) for result in results)
    best = [r for r in results if (r["net"], r["kl"] or 0) == lowest][-1]
    assert callback.kept == best["step"]
    assert same(trained(base.model), weights.at[best["step"]])
    assert not same(trained(base.model), weights.at[6])
    assert lines == [
        f"Guard: the model has the weights of step {best['step']}, the best that was measured",
        *best["verdict"],
    ]


def test_if_every_step_has_lost_the_last_weights_stay(tmp_path):
    base, weights, lines = whole_base(), Weights(), []
    callback = Guard(**FEW, every=10, keep_best=True, say=lines.append)
    train(base, tmp_path, callback, callbacks=[weights], **LEARNS)
    assert same(trained(base.model), weights.at[20])
    assert callback.kept is None
    assert lines[0].startswith("Guard: general ability is lost at every measured step")


@pytest.mark.own
def test_without_an_adapter_a_resumed_training_is_compared_with_the_checkpoint(tmp_path):
    train(whole_base(), tmp_path, save_strategy="steps", save_steps=5)
    base, lines = whole_base(), []
    trainer = plain_trainer(base, tmp_path, Guard(**FEW, say=lines.append))
    trainer.callback_handler.processing_class = base.tokenizer
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert "goes on at step 5" in lines[0]


# --- in TRL


@pytest.mark.parametrize("lora", [True, False])
def test_in_sft_training_is_bitwise_the_same_and_in_the_chat_template(lora, tmp_path):
    def learned(*callbacks: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # older releases of TRL draw the adapter's first weights unseeded
        tokenizer = tiny_tokenizer("causal")
        tokenizer.chat_template = TEMPLATE
        settings: Any = {**PLAIN, "bf16": True, "gradient_checkpointing": True, "max_length": 64}
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
        trainer = SFTTrainer(
            tiny_model("causal"),
            SFTConfig(str(tmp_path), **settings),
            train_dataset=Dataset.from_list([dict(row) for row in tiny_rows("colour", 16)]),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            peft_config=config if lora else None,
        )
        trainer.train()
        return trained(trainer.model)

    callback = quiet(every=2, system="up")
    assert same(learned(), learned(callback))
    assert [result["step"] for result in callback.results] == [2, 4]
    assert all(result["chat_template"] for result in callback.results)
    assert [result["kl"] is not None for result in callback.results] == [lora] * 2
    assert (callback.results[0]["reference"] == "the base") == lora


# --- what is refused


@pytest.mark.parametrize(
    ("keywords", "line"),
    [
        ({"every": 0}, "Guard: every must be a whole number of at least 1, got 0"),
        ({"every": 0.5}, "every must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"limit": 0}, "a limit of rows must be at least 1"),
        ({"stop": True}, "Guard: stop needs measurements during training; set every"),
        ({"keep_best": True}, "Guard: keep_best needs measurements during training; set every"),
        ({"rows": [{"prompt": "Hi"}]}, "the rows, row 1: check must name at least one check"),
    ],
)
@pytest.mark.own
def test_wrong_keywords_are_refused(keywords, line):
    with pytest.raises(PerdureError, match=line):
        Guard(**{**FEW, **keywords})


@pytest.mark.own
def test_a_trainer_whose_model_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(PerdureError, match="has no tokenizer; give it one as processing_class"):
        plain_trainer(base_of("causal"), tmp_path, quiet()).train()
    with pytest.raises(PerdureError, match="Guard: the model cannot generate text"):
        train(base_of("encoder"), tmp_path, quiet())
    trainer = plain_trainer(base_of("causal"), tmp_path, quiet(every=5, keep_best=True))
    trainer.args.load_best_model_at_end = True
    with pytest.raises(PerdureError, match="both choose the weights"):
        trainer.train()


@pytest.mark.own
def test_it_is_public_and_asks_bundled_rows():
    assert perdure.Guard is Guard
    assert len(Guard().guard_rows) == 70
    assert len(Guard(limit=None).guard_rows) > 150
