"""What `init` tries of an adapter: what would fail or mislead later is refused before it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
)

from command import tree
from perdure import PerdureError
from perdure.api import evaluate, export
from perdure.config import load_config
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from place import init, learn, output, setting_for, stage_output, task
from tiny import tiny_model, tiny_tokenizer


FEW = {
    "base": "base",
    "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
    "max_completion_length": 4,
    "threads": 1,
    "max_length": 64,
}
TIED = {"target_modules": ["q_proj", "lm_head"]}


@pytest.fixture
def causal(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    setting_for("causal", tmp_path, n=16)
    return tmp_path


def tied(dtype: torch.dtype = torch.float32) -> None:
    """A base whose output head is its embeddings, with weights that matter."""
    config = tiny_model("causal").config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.to(dtype).save_pretrained("base")


def init_with(adapter: dict, **settings) -> None:
    init("lineage", load_config({**FEW, **settings, "adapter": adapter}))


def refused(why: str, adapter: dict, **settings) -> None:
    before = tree(Path())
    with pytest.raises(PerdureError, match=why) as error:
        init_with(adapter, **settings)
    assert "\n" not in str(error.value)
    assert tree(Path()) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_matrix_that_carries_an_adapter_is_exported_as_it_is(causal, dtype):
    """What stands in one place stands there alone: the plain model is the stage."""
    tied(dtype)
    init_with(TIED)
    learn("lineage", task("colour"))
    export("lineage", "out", dtype="float32")
    stage = base_at(Lineage("lineage"), Lineage("lineage").stages[-1])
    live = output(stage.network.float(), stage.tokenizer)
    model = AutoModelForCausalLM.from_pretrained("out")
    assert (output(model, stage.tokenizer) - live).abs().max() <= 1e-5 * live.abs().max()
    assert not model.config.tie_word_embeddings
    assert "lm_head.weight" in load_file("out/model.safetensors")


@pytest.mark.own  # PEFT 0.18 ties nothing
def test_embeddings_trained_whole_and_kept_tied_come_back(causal):
    tied()
    whole = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    init_with({"target_modules": ["q_proj"], **whole})
    learn("lineage", task("colour"))
    live = stage_output("lineage")
    export("lineage", "out")
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(output(model, AutoTokenizer.from_pretrained("out")), live)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_base_is_refused(causal, start):
    adapter = {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": start}
    refused(f"init_lora_weights={start} changes the base's weights .* leave it out", adapter)


@pytest.mark.parametrize("start", ["eva", "corda", "lora_ga"])
def test_a_start_that_needs_rows_is_refused(causal, start):
    refused(f"init_lora_weights={start} is computed from rows", {"init_lora_weights": start})


@pytest.mark.parametrize("start", [False, "orthogonal"])
def test_other_starts_leave_the_base_alone(causal, start):
    """Row 0 of the matrix is the base itself, after the task was learned too."""
    init_with({"target_modules": ["q_proj"], "r": 4, "init_lora_weights": start})
    learn("lineage", task("colour"))
    base = base_at(Lineage("lineage"), Lineage("lineage").stages[-1])
    with base.peft.disable_adapter():
        off = output(base.network, base.tokenizer)
    assert torch.equal(off, output(AutoModelForCausalLM.from_pretrained("base"), base.tokenizer))
    first = Lineage("lineage").matrix().rows[0]
    assert first == tuple(cell["score"] for cell in evaluate("lineage", 0).values())


def test_an_adapter_that_began_so_is_refused_too(causal):
    model = AutoModelForCausalLM.from_pretrained("base")
    settings = {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": "olora"}
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained("mine")
    before = tree(Path())
    with pytest.raises(PerdureError, match="init_lora_weights=olora changes the base's weights"):
        init("lineage", load_config(FEW), "mine")
    assert tree(Path()) == before


@pytest.mark.filterwarnings("ignore:OLoRA changes the base weights")
def test_an_adapter_that_peft_converted_is_taken(causal):
    model = AutoModelForCausalLM.from_pretrained("base")
    settings = {"target_modules": ["q_proj"], "r": 4, "init_lora_weights": "olora"}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained("start")
    model.peft_config["default"].init_lora_weights = "olora"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    tokenizer = AutoTokenizer.from_pretrained("base")
    expected = output(model, tokenizer)
    model.save_pretrained("mine", path_initial_model_for_weight_conversion="start")
    init("lineage", load_config(FEW), "mine")
    torch.testing.assert_close(stage_output("lineage", 0), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"lora_bias": True}, "lora_bias=True: it could not be merged for an export"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication=.*disabling it"),
        ({"target_modules": ["embed_tokens"], "lora_bias": True}, "lora_bias"),
    ],
)
def test_a_shape_that_fails_after_training_is_refused_before(causal, adapter, why):
    refused(why, {"target_modules": ["q_proj"], **adapter})


def test_biases_that_stay_when_it_is_switched_off(causal):
    config = tiny_model("causal").config
    config.attention_bias = True
    LlamaForCausalLM(config).save_pretrained("base")
    refused("bias=all: disabling it does not", {"target_modules": ["q_proj"], "bias": "all"})
    init_with({"target_modules": ["q_proj"], "lora_bias": True})  # it has a bias to go to


def test_an_adapter_on_what_the_base_does_not_use(tmp_path, monkeypatch):
    """T5's encoder and decoder have embeddings of their own, tied to these."""
    monkeypatch.chdir(tmp_path)
    setting_for("seq2seq", tmp_path, n=16)
    refused("it trains do not affect the output", {"target_modules": ["shared"]})


def test_the_stage_serves_with_plain_peft_as_well(causal):
    tied()
    init_with(TIED)
    learn("lineage", task("colour"))
    plain = AutoModelForCausalLM.from_pretrained("base")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        served = PeftModel.from_pretrained(plain, "lineage/stages/0001-colour")
    assert torch.equal(output(served, tiny_tokenizer("causal")), stage_output("lineage"))
