"""What the callback requires of a Trainer, what it warns of, and the steps that it takes."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    BertForMaskedLM,
    DataCollatorWithFlattening,
    TrainerCallback,
    TrainingArguments,
)
from transformers.training_args import OptimizerNames

from methods.recurrent_kif.plain_trainer import (
    PLAIN,
    base_of,
    collator,
    features,
    kif_callback,
    plain_trainer,
    run,
)
from perdure.errors import PerdureError
from perdure.methods.recurrent_kif import callback
from perdure.methods.recurrent_kif.callback import CallbackSteps
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.models import sharded
from perdure.train.step import gradient_of
from tiny import tiny_model, tiny_rows


ROUNDS = {"inner_steps": 4, "outer_steps": 2}


# --- what it refuses, and what it warns of


def test_raw_rows_are_refused_where_nothing_can_tokenize_them(tmp_path):
    raw = RecurrentKIF(memory=list(tiny_rows("animal", 4)))
    with pytest.raises(PerdureError, match=r"raw rows \(prompt, completion\).*pass features"):
        run("causal", tmp_path, raw)
    with pytest.raises(PerdureError, match="of type int"):
        run("causal", tmp_path, RecurrentKIF(memory=[1, 2]))


@pytest.mark.parametrize(
    ("accelerator", "arguments", "message"),
    [
        ({"mixed_precision": "fp16"}, {}, "use bf16"),
        ({"distributed_type": "FSDP"}, {}, "sharded weights"),
        ({"distributed_type": "DEEPSPEED"}, {}, "sharded weights"),
        ({}, {"optim": OptimizerNames.ADALOMO}, "use adamw_torch"),
        ({}, {"learning_rate": 0.0}, "above 0"),
    ],
)
def test_settings_that_hide_weights_or_gradients_are_refused(
    accelerator, arguments, message, monkeypatch
):
    state = {"mixed_precision": "no", "distributed_type": "NO", **accelerator}
    for module in (callback, sharded):
        monkeypatch.setattr(module, "AcceleratorState", lambda: SimpleNamespace(**state))
    args = SimpleNamespace(**{"optim": "adamw_torch", "learning_rate": 1e-3, **arguments})
    search = SimpleNamespace(is_hyper_param_search=False)
    with pytest.raises(PerdureError, match=message) as caught:
        callback.check_trainer(args, search, tiny_model("causal"), "recurrent_kif")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_real_state_of_accelerate_has_the_words_that_are_asked_for(tmp_path):
    plain_trainer(base_of("causal"), tmp_path)
    assert AcceleratorState().distributed_type == "NO"
    assert AcceleratorState().mixed_precision == "no"


def test_a_model_whose_loss_it_does_not_know_is_refused():
    model = BertForMaskedLM(tiny_model("encoder").config)
    batch = {"labels": torch.zeros(1, 4, dtype=torch.int64)}
    for labels in (batch, {"labels": torch.zeros(1, 4)}, {}):
        with pytest.raises(PerdureError, match="cannot rehearse with BertForMaskedLM"):
            callback.kind_of_batch(model, labels, "recurrent_kif")


@pytest.mark.parametrize(
    ("kind", "name"), [("seq2seq", "T5ForConditional"), ("encoder", "BertForSequence")]
)
@pytest.mark.parametrize("memory", [0, 6])
def test_a_model_whose_accumulated_loss_is_not_divided_is_warned_of(kind, name, memory, tmp_path):
    with pytest.warns(UserWarning, match=f"{name}.* 2 times too large") as caught:
        run(kind, tmp_path, kif_callback(kind, memory, **ROUNDS), gradient_accumulation_steps=2)
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("causal", {"gradient_accumulation_steps": 2}),
        ("seq2seq", {}),
        ("seq2seq", {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}),
    ],
)
def test_no_warning_where_the_loss_is_right(kind, settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(kind, tmp_path, kif_callback(kind, **ROUNDS), **settings)


@pytest.mark.parametrize("divided", [False, True])
def test_the_warning_is_true_and_its_remedy_works(divided, tmp_path):
    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            norms.append(float(torch.cat(grads).norm()))

    norms = []
    for size, accumulation in ((8, 1), (4, 2)):
        settings = {"gradient_accumulation_steps": accumulation, "max_steps": 1}
        settings |= {"per_device_train_batch_size": size, "max_grad_norm": 0.0}
        trainer = plain_trainer(base_of("encoder", 0.0), tmp_path, callbacks=[Norm()], **settings)
        trainer.model_accepts_loss_kwargs = not divided
        trainer.train()
    assert norms[1] / norms[0] == pytest.approx(1 if divided else 2, rel=1e-3)


# --- what is under it


def test_rows_laid_end_to_end_do_not_see_each_other(tmp_path):
    base = base_of("causal", 0.0)
    rows = [
        {**row, "labels": [-100, *row["labels"][1:]]} for row in features("causal", "animal", 6)
    ]
    args = TrainingArguments(output_dir=str(tmp_path), **PLAIN)
    collators = (collator(base), DataCollatorWithFlattening())
    both = [CallbackSteps(args, base.model, c, "causal") for c in collators]
    padded, flat = (gradient_of(s.parameters, partial(s._backward, rows, 0)) for s in both)
    for a, b in zip(padded, flat, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
