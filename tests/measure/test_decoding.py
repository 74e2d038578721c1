"""Decoding depends on the model and its token ids, not on the settings a base comes with."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from measure.test_evaluate import base_of, rows_of_many_lengths
from perdure.measure.predict import predict, room_for_prompt
from perdure.models.base import Base
from perdure.models.limits import Limits
from tiny import tiny_tokenizer


WORD = 12  # a token that the tiny models write
SETTINGS = {
    "min_length": 40,
    "min_new_tokens": 6,
    "suppress_tokens": list(range(4, 20)),
    "begin_suppress_tokens": list(range(4, 30)),
    "bad_words_ids": [[word] for word in range(4, 20)],
    "forced_bos_token_id": WORD,
    "forced_eos_token_id": WORD,
    "sequence_bias": [[[WORD], 50.0]],
    "exponential_decay_length_penalty": (1, 50.0),
    "repetition_penalty": 9.0,
    "encoder_repetition_penalty": 0.01,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "num_beams": 3,
    "do_sample": True,
    "guidance_scale": 9.0,
    "max_length": 1,
    "max_time": 0.0,
    "stop_strings": ["red", "blue", "cat", "o", "e"],
    "prompt_lookup_num_tokens": 3,
    "cache_implementation": "static",
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "renormalize_logits": True,
    "token_healing": True,
}


def adapted(base: Base) -> Base:
    settings = LoraConfig(target_modules=["q_proj", "q"], init_lora_weights=False)
    settings.task_type = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}[base.kind]
    return Base(base.name, base.kind, get_peft_model(base.model, settings), base.tokenizer)


def written(base: Base) -> list[str]:
    return predict(base, rows_of_many_lengths(2), "generate", None, 64, 3)[0]


def check(base: Base, settings: dict, expected: list[str]) -> None:
    """That these are the answers, and that the settings stay where they were."""
    network = base.network if base.whole else base.peft.model
    plain = network.generation_config
    network.generation_config = changed_config = copy.deepcopy(plain)
    for name, value in settings.items():
        setattr(changed_config, name, value)
    assert written(base) == expected, settings
    assert network.generation_config is changed_config, "it is stored with the weights"
    assert all(getattr(changed_config, name) == value for name, value in settings.items())
    network.generation_config = plain


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_no_setting_of_a_base_decides_an_answer(kind):
    base = base_of(kind)
    expected = written(base)
    for name, value in SETTINGS.items():
        check(base, {name: value}, expected)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_none_does_under_an_adapter(kind):
    base = adapted(base_of(kind))
    check(base, SETTINGS, written(base))


def test_settings_of_generation_in_the_models_config_neither():
    base, rows = base_of("causal"), rows_of_many_lengths(3)
    expected = predict(base, rows, "generate", None, 64, 8)
    base.model.config.min_length = 40
    base.model.config.bad_words_ids = [[WORD]]
    assert predict(base, rows, "generate", None, 64, 8) == expected


@pytest.mark.parametrize("learned", [True, False])
def test_a_forced_first_token_stays_where_the_answers_begin_with_it(learned):
    """The language of a translation model: its tokenizer writes it before every text."""
    tokenizer = tiny_tokenizer("seq2seq")
    if learned:
        inner = tokenizer.backend_tokenizer
        inner.post_processor = processors.TemplateProcessing(
            single="red $A </s>", special_tokens=[("red", 7), ("</s>", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    config = BartConfig(
        **sizes,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)  # other weights may begin every answer with that token by chance
    model = BartForConditionalGeneration(config)
    base = Base("translator", "seq2seq", model, tokenizer)
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids("red")
    rows = rows_of_many_lengths(6)
    answers, _ = predict(base, rows, "generate", None, 64, 4)
    model.generation_config.forced_bos_token_id = None
    free, _ = predict(base, rows, "generate", None, 64, 4)
    assert (answers != free) == learned
    assert all(text.startswith("red") for text in answers) == learned


def test_the_prompt_of_an_encoder_decoder_fits_into_its_positions():
    limits = Limits(positions=128, answer_positions=64)
    assert room_for_prompt("seq2seq", limits, 4096, 32) == 128
    assert room_for_prompt("seq2seq", Limits(), 4096, 32) == 4096
    assert room_for_prompt("causal", limits, 4096, 32) == 96
