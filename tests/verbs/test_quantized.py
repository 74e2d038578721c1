"""QLoRA: an adapter learned on a quantised base. bitsandbytes runs on a CPU as well."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from perdure import PerdureError, load_config
from perdure.api import export, run
from perdure.lineage.loading import base_at
from perdure.models.base import load_base
from perdure.models.pins import DEFAULT
from place import learned, setting_for


pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
EIGHT = {"load_in_8bit": True}


@pytest.fixture
def setting(tmp_path):
    """The embedded model, wide enough for the blocks of a quantised matrix, and two tasks."""
    plain_setting = setting_for("causal", tmp_path)
    return {**plain_setting, "base": "default", "quantization": FOUR, "max_completion_length": 16}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def test_only_the_adapter_is_trained_and_the_base_stays_quantised(setting, tmp_path):
    lineage = learned({**setting, "method": "recurrent_kif"}, tmp_path / "run")
    base = base_at(lineage, lineage.stages[-1])
    linears = [m for m in base.model.modules() if isinstance(m, Linear4bit)]
    assert len(linears) == 7 * 4  # the projections of four layers
    assert all(p.dtype == torch.float32 for p in base.model.parameters() if p.requires_grad)
    ids = torch.arange(5, 25).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(
        DEFAULT, quantization_config=BitsAndBytesConfig(**FOUR)
    )
    for module in plain.modules():  # else some CPUs take a kernel in bf16
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    served = PeftModel.from_pretrained(plain, lineage.folder(lineage.stages[-1]))
    with torch.no_grad():
        assert same(served.eval()(ids).logits, base.model.eval()(ids).logits)


def test_the_gradient_after_scoring_is_that_of_the_weights_unpacked():
    """With bitsandbytes 0.50 some CPUs have none once the model has answered anything."""
    quantised, plain = (load_base("default", {"lora_dropout": 0.0}, 0, q) for q in (FOUR, None))
    modules = dict(quantised.model.named_modules())
    for name, module in plain.model.named_modules():
        if isinstance(modules.get(name), Linear4bit):
            weight = modules[name].weight
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        quantised.model.eval()(input_ids=ids)
    gradients = []
    for base in (quantised, plain):
        base.model.train()(input_ids=ids, labels=ids).loss.backward()
        by_name = {n: p.grad for n, p in base.model.named_parameters() if p.requires_grad}
        gradients.append(torch.cat([by_name[n].flatten() for n in sorted(by_name)]))
    assert gradients[1].norm() > 0
    torch.testing.assert_close(*gradients)


def test_export_merges_into_the_base_as_it_was(setting, tmp_path):
    lineage = learned(setting, tmp_path / "run")
    export(lineage.path, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    unquantised = AutoModelForCausalLM.from_pretrained(DEFAULT)
    served = PeftModel.from_pretrained(unquantised, lineage.folder(lineage.stages[-1]))
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        assert same(plain.eval()(ids).logits, served.eval()(ids).logits)


def test_eight_bits_load_as_well():
    base = load_base("default", {}, 0, EIGHT)
    assert any(isinstance(m, Linear8bitLt) for m in base.model.modules())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"adapter": None}, "a quantised base needs an adapter; set adapter="),
        ({"quantization": {"load_in_4bits": True}}, "did you mean 'load_in_4bit'"),
        ({"quantization": {"bnb_4bit_quant_type": "nf4"}}, "neither load_in_4bit nor load_in_8bit"),
        (
            {"quantization": {"load_in_4bit": True, "load_in_8bit": True}},
            "load_in_4bit and load_in",
        ),
    ],
)
def test_what_cannot_be_is_told(setting, tmp_path, overrides, line):
    with pytest.raises(PerdureError, match=line):
        run(load_config({**setting, **overrides, "lineage": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_refused(tmp_path):
    setting = setting_for("encoder", tmp_path)
    with pytest.raises(PerdureError, match="an encoder is small enough without"):
        learned({**setting, "quantization": FOUR}, tmp_path / "run")
