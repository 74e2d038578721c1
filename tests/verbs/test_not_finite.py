"""What is infinite or not a number stops a verb in one line, and makes no stage."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from command import perdure, refused, tree


pytestmark = [pytest.mark.own, pytest.mark.parametrize("kind", ["causal"])]

TASK = ("more", "colour-train.jsonl", "--test", "colour-test.jsonl")


def break_weights(file: Path, value: float) -> None:
    """Put a value at the end of a file's first tensor."""
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "method", ["sequential", pytest.param("recurrent_kif", marks=pytest.mark.slow)]
)
def test_a_rate_that_is_too_high_makes_no_stage(place, method):
    perdure("set", "lineage", f"method={method}")
    before = tree(Path("lineage"))
    status, out, err = perdure("learn", "lineage", *TASK, "training.learning_rate=1e38")
    errors = [line for line in err.splitlines() if line.startswith("perdure: error: ")]
    assert (status, out, len(errors)) == (2, "", 1), err
    assert "task 'more': the norm of the weights is not finite at step 1" in errors[0]
    assert "1e+38" in errors[0]
    assert "Traceback" not in err
    after = tree(Path("lineage"))
    assert not after.pop(".work", None) or not list(Path("lineage/.work").iterdir())
    assert after == before
    status, _, err = perdure("learn", "lineage", *TASK, "training.learning_rate=1e-3")
    assert status == 0, err


def test_a_rate_that_changes_nothing_is_said(place):
    training = ("training.learning_rate=1e-30", "training.num_train_epochs=3")
    status, _, err = perdure("learn", "lineage", *TASK, *training)
    assert status == 0
    assert "warning: more: no weight has changed in 9 steps" in err


@pytest.mark.parametrize("value", [-math.inf])
def test_a_base_with_such_a_weight_makes_no_lineage(place, value):
    break_weights(Path("base/model.safetensors"), value)
    refused(place, "init", "new", "--base", "base", names=("base 'base'", "its weight", "numbers"))


def test_a_checkpoint_with_such_a_weight_makes_no_stage(place):
    shutil.copytree("lineage/stages/0002-animal", "checkpoint")
    break_weights(Path("checkpoint/adapter_model.safetensors"), math.inf)
    before = tree(Path("lineage/stages"))
    status, out, err = perdure("adopt", "lineage", "checkpoint", "more")
    assert (status, out) == (2, ""), err
    assert "perdure: error: checkpoint: its weight" in err
    assert tree(Path("lineage/stages")) == before


def test_a_model_whose_outputs_are_such_is_not_measured(place):
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("base"), "lineage/stages/0002-animal"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(math.nan)
    model.save_pretrained("broken")
    status, out, err = perdure("check", "broken")
    assert (status, out) == (2, ""), err
    assert "outputs are not finite" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "setting",
    [
        *("training.learning_rate=.nan", "training.weight_decay=.inf", "memory.ratio=.nan"),
        *("gate.kl=.inf", "gate.forgetting=.nan", "adapter.lora_alpha=.inf", "seed=.nan"),
        *("method={ewc: {strength: .nan}}", "method={agem: {strength: .inf}}", "guard.share=.nan"),
        *("training.max_grad_norm=-.inf", "training.learning_rate=1e999", f"seed={'9' * 400}"),
        f"training.learning_rate={'9' * 400}",
    ],
)
def test_a_setting_that_is_such_is_refused(place, setting):
    key = setting.partition("=")[0].rpartition(".")[2]
    refused(place, "init", "new", "--base", "base", setting, names=(key,))
