"""Bases of every family: what kind they are, that LoRA finds its place, and the growing head."""

import io
import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaForCausalLM,
)

from perdure.errors import PerdureError
from perdure.models.base import kind_of, load_base, with_adapter
from perdure.models.classifier import Classifier
from perdure.models.pins import pin
from perdure.models.stage_files import load_weights, save_weights
from tiny import tiny_model, tiny_tokenizer


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 64}
FAMILIES = {
    "llama": ("causal", AutoModelForCausalLM, SMALL),
    "qwen2": ("causal", AutoModelForCausalLM, SMALL),
    "qwen3": ("causal", AutoModelForCausalLM, SMALL),
    "gpt2": ("causal", AutoModelForCausalLM, GPT2),
    "gpt_neox": ("causal", AutoModelForCausalLM, SMALL),
    "t5": ("seq2seq", AutoModelForSeq2SeqLM, T5),
    "mt5": ("seq2seq", AutoModelForSeq2SeqLM, T5),
    "bert": ("encoder", AutoModel, SMALL),
    "roberta": ("encoder", AutoModel, SMALL),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_of_the_family_loads_with_an_adapter_that_can_be_trained(family, tmp_path):
    kind, auto, sizes = FAMILIES[family]
    auto.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer(kind).save_pretrained(tmp_path)
    base = load_base(str(tmp_path), {}, seed=0)
    assert base.kind == kind
    trained = [n for n, p in base.model.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in trained)
    assert all("lora_" in name or name in ("weight", "bias") for name in trained)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if isinstance(base.model, Classifier):
        base.model.grow(("a", "b"), seed=0)
    base.model(**inputs).logits.sum().backward()
    assert all(p.grad is not None for p in base.model.parameters() if p.requires_grad)


def test_a_model_that_is_no_language_model_is_refused():
    with pytest.raises(PerdureError, match="model type 'vit'"):
        kind_of(AutoConfig.for_model("vit"), "some-vit")


def test_the_same_seed_gives_the_same_adapter_and_the_global_generator_is_left_alone(tmp_path):
    tiny_model("causal").save_pretrained(tmp_path)
    tiny_tokenizer("causal").save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    one, two, other = (load_base(str(tmp_path), {}, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    name = next(n for n, _ in one.model.named_parameters() if "lora_A" in n)
    assert torch.equal(one.model.get_parameter(name), two.model.get_parameter(name))
    assert not torch.equal(one.model.get_parameter(name), other.model.get_parameter(name))


def test_a_bf16_checkpoint_loads_as_bf16_and_its_adapter_trains_in_fp32(tmp_path):
    tiny_model("causal").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer("causal").save_pretrained(tmp_path)
    base = load_base(str(tmp_path), {}, seed=0)
    dtypes = {p.requires_grad: p.dtype for p in base.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_the_head_grows_and_its_old_rows_stay_bitwise():
    head = Classifier(tiny_model("encoder"), 32)
    head.grow(("b", "a"), seed=0)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    head.grow(("a", "c", "d"), seed=1)
    assert head.labels == ["b", "a", "c", "d"]
    assert torch.equal(head.weight[:2], weight)
    assert torch.equal(head.bias[:2], bias)
    assert head.weight.requires_grad
    before = head.weight
    head.grow(("a",), seed=2)
    assert torch.equal(before, head.weight)


def test_the_head_reads_the_mean_over_the_attention_mask():
    head = Classifier(tiny_model("encoder").eval(), 32)
    head.grow(("a", "b"), seed=0)
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    hidden = head.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[0, :3].mean(0)
    expected = hidden @ head.weight.T + head.bias
    torch.testing.assert_close(head(ids, mask).logits[0], expected)


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_saved_weights_come_back_bitwise_and_are_the_same_bytes_twice(kind, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path / "base")
    tiny_tokenizer(kind).save_pretrained(tmp_path / "base")
    one, two = (load_base(str(tmp_path / "base"), {}, seed) for seed in (0, 1))
    if isinstance(one.model, Classifier):
        one.model.grow(("x", "ü"), seed=0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_weights(one, tmp_path / name)
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_size > 1000
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    load_weights(two, tmp_path / "a")
    ours, theirs = (
        {n: p for n, p in base.model.named_parameters() if p.requires_grad} for base in (one, two)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert one.labels == two.labels


def test_weights_of_another_model_are_refused(tmp_path):
    for kind in ("causal", "encoder"):
        tiny_model(kind).save_pretrained(tmp_path / kind)
        tiny_tokenizer(kind).save_pretrained(tmp_path / kind)
    llama, bert = (load_base(str(tmp_path / kind), {}, 0) for kind in ("causal", "encoder"))
    (tmp_path / "stage").mkdir()
    save_weights(llama, tmp_path / "stage")
    with pytest.raises(PerdureError, match="stage"):
        load_weights(bert, tmp_path / "stage")


def test_a_folder_is_pinned_by_the_hash_of_every_file(tmp_path):
    tiny_model("causal").save_pretrained(tmp_path)
    tiny_tokenizer("causal").save_pretrained(tmp_path)
    first = pin(str(tmp_path))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(first["files"])
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert pin(str(tmp_path)) != first


@pytest.mark.own
def test_the_tokenizer_of_a_prompt_adapter_runs_no_code(tmp_path, monkeypatch):
    """PEFT loads it to make the first prompt, and would ask whether to run what it brings."""
    tiny_tokenizer("seq2seq").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    adapter = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": 2,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "good",
        "tokenizer_name_or_path": str(tmp_path),
    }
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(PerdureError, match="custom code"):
        with_adapter(tiny_model("seq2seq"), "seq2seq", adapter, seed=0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "adapter",
    [
        {"r": 2, "modules_to_save": ["lm_head"]},
        {"r": 2, "bias": "lora_only"},
        {"peft_type": "LN_TUNING"},
    ],
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # of PEFT, for LN_TUNING
def test_weights_of_a_base_that_an_adapter_trains_are_fp32(adapter, tmp_path):
    """Small updates of a bf16 weight would be rounded away."""
    config = tiny_model("causal").config
    config.update({"attention_bias": True})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer("causal").save_pretrained(tmp_path)
    base = load_base(str(tmp_path), adapter, seed=0)
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    plain = load_base(str(tmp_path), {"r": 2}, seed=0)
    trained = {p.dtype for p in plain.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in plain.model.parameters()}
