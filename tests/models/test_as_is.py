"""Models that are loaded only to be asked: folders, and adapters on their bases."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from perdure.errors import PerdureError
from perdure.models.as_is import base_of_adapter, is_adapter, load_as_is
from tiny import save_tiny, tiny_model


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter on the base beside it, with weights that are not zero."""
    save_tiny("causal", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[4, 5, 6, 7]])).logits


def test_a_folder_is_loaded_in_the_data_type_of_its_files(tmp_path):
    save_tiny("causal", tmp_path / "float")
    base = load_as_is(str(tmp_path / "float"))
    assert torch.equal(outputs(base.model), outputs(tiny_model("causal").eval()))
    tiny_model("causal").to(torch.bfloat16).save_pretrained(tmp_path / "float")
    assert load_as_is(str(tmp_path / "float")).network.dtype == torch.bfloat16


def test_an_encoder_decoder_is_loaded(tmp_path):
    base = load_as_is(str(save_tiny("seq2seq", tmp_path / "base")))
    assert base.kind == "seq2seq"
    assert base.tokenizer.eos_token == "</s>"


def test_an_adapter_is_loaded_on_the_base_that_it_names(adapter):
    assert is_adapter(str(adapter))
    assert base_of_adapter(str(adapter)) == (str(adapter.parent / "base"), None)
    base = load_as_is(str(adapter))
    plain = outputs(tiny_model("causal").eval())
    assert not torch.allclose(outputs(base.model), plain)
    with base.peft.disable_adapter():
        assert torch.equal(outputs(base.model), plain)


@pytest.mark.own
def test_what_cannot_be_asked_is_refused(tmp_path, adapter):
    encoder = save_tiny("encoder", tmp_path / "encoder")
    with pytest.raises(PerdureError, match="an encoder cannot generate"):
        load_as_is(str(encoder))
    with pytest.raises(PerdureError, match="no model could be loaded"):
        load_as_is(str(tmp_path / "nothing"))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(PerdureError, match="a pickled adapter cannot be loaded"):
        load_as_is(str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(PerdureError, match="does not load on its base"):
        load_as_is(str(adapter))
    (adapter / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": None})
    )
    with pytest.raises(PerdureError, match="names no base"):
        load_as_is(str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(PerdureError, match="not an adapter's settings"):
        load_as_is(str(adapter))
