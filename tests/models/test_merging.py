"""Merging an adapter into tied weights: read back, the plain model is the one that was learned."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from perdure.models.base import TASK_TYPE
from perdure.models.merging import merge
from perdure.models.sample import sample_output
from tiny import tiny_model, tiny_tokenizer


def llama():
    config = tiny_model("causal").config
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=35, **sizes))


def t5():
    return T5ForConditionalGeneration(tiny_model("seq2seq").config)


def bart():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(
        d_model=16, vocab_size=35, forced_eos_token_id=None, **sizes, **heads, **ids
    )
    return BartForConditionalGeneration(config)


def whole(module: str) -> dict:
    return {"target_modules": "all-linear", "modules_to_save": [module]}


TOKENS = {"target_modules": "all-linear", "trainable_token_indices": [4, 5, 6]}
# Family, what carries the adapter, and whether the two matrices are still the same after it.
CASES = [
    (llama, {"target_modules": ["q_proj"]}, True),
    (llama, {"target_modules": ["lm_head"]}, False),
    (llama, {"target_modules": ["embed_tokens"]}, False),
    (llama, {"target_modules": ["embed_tokens", "lm_head"]}, False),
    (llama, whole("embed_tokens"), False),
    (llama, whole("lm_head"), False),
    (llama, TOKENS, True),
    (gpt2, {"target_modules": ["wte"]}, False),
    (gpt2, {"target_modules": ["c_attn", "lm_head"], "fan_in_fan_out": False}, False),
    (t5, {"target_modules": ["lm_head"]}, False),
    (t5, {"target_modules": ["embed_tokens"]}, True),  # those of its encoder and decoder
    (t5, whole("lm_head"), False),
    (bart, {"target_modules": ["lm_head"]}, False),
    (bart, {"target_modules": ["embed_tokens", "lm_head"]}, False),
    (bart, TOKENS, True),
]


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:fan_in_fan_out")
@pytest.mark.parametrize(("family", "settings", "same"), CASES)
def test_the_model_read_back_is_the_one_that_was_learned(family, settings, same, tmp_path):
    torch.manual_seed(0)
    model = family()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    kind = "seq2seq" if model.config.is_encoder_decoder else "causal"
    network = get_peft_model(model, LoraConfig(task_type=TASK_TYPE[kind], r=4, **settings))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tokenizer = tiny_tokenizer(kind)
    live = sample_output(network, tokenizer)
    merge(network).save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    read_back = auto.from_pretrained(tmp_path)
    read_output = sample_output(read_back, tokenizer)
    assert (read_output - live).abs().max() <= 1e-5 * live.abs().max()
    head, embeddings = read_back.lm_head.weight, read_back.get_input_embeddings().weight
    assert (head is embeddings) == same
    if kind == "causal":
        assert read_back.config.tie_word_embeddings == same
