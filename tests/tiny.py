"""Tiny models of three families with a word-level tokenizer, made from configs: no network."""

import functools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)


WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "good",
    "bad",
    "up",
    "down",
    "left",
    "right",
    "question",
    "answer",
    "is",
    "the",
    "of",
    "to",
    ":",
    ".",
    "=",
]
KINDS = ("causal", "seq2seq", "encoder")


def shown_on_causal(fixture: str, kinds: tuple[str, ...] = KINDS):
    """For a test that shows the same on every kind that `fixture` takes: slow but on the first."""
    others = [pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[1:]]
    return pytest.mark.parametrize(fixture, [kinds[0], *others], indirect=True)


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Word-level, whitespace split. Special tokens as the family has them."""
    special = {
        "causal": ["<pad>", "<s>", "</s>", "<unk>"],
        "seq2seq": ["<pad>", "</s>", "<unk>"],
        "encoder": ["<pad>", "[CLS]", "[SEP]", "<unk>"],
    }[kind]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "encoder":
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif kind == "seq2seq":
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
        names |= {"eos_token": "</s>"}
    else:
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """2 layers, width 32: Llama (causal), T5 (seq2seq) or BERT (encoder). Dropout is zero."""
    vocab_size = len(tiny_tokenizer(kind))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "causal":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocab_size,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=128,
                    bos_token_id=1,
                    eos_token_id=2,
                    pad_token_id=0,
                )
            )
        if kind == "seq2seq":
            return T5ForConditionalGeneration(
                T5Config(
                    vocab_size=vocab_size,
                    d_model=32,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    dropout_rate=0.0,
                    decoder_start_token_id=0,
                    pad_token_id=0,
                    eos_token_id=1,
                )
            )
        return BertModel(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=128,
                pad_token_id=0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )


def save_tiny(kind: str, folder: Path, seed: int = 0) -> Path:
    """A folder that `init --base FOLDER` takes."""
    tiny_model(kind, seed).save_pretrained(folder)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder


@functools.cache
def tiny_rows(mapping: str, n: int = 40, seed: int = 0) -> tuple[dict, ...]:
    """Rows of a toy task: the answer is a fixed function (given by `mapping`) of the third word."""
    generator = torch.Generator().manual_seed(seed)
    subjects, answers = (
        WORDS[:4],
        {"colour": WORDS[4:7], "animal": WORDS[7:10], "count": WORDS[10:14]}[mapping],
    )
    rows = []
    for _ in range(n):
        a, b = torch.randint(0, 4, (2,), generator=generator).tolist()
        rows.append(
            {
                "prompt": f"question the {subjects[a]} {subjects[b]} = answer : ",
                "completion": answers[a % len(answers)],
            }
        )
    return tuple(rows)
