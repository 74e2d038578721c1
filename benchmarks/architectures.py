"""Tiny models of many architectures, made from configs: random weights, no network."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)


WORDS = ["alpha", "beta", "gamma", "delta", "red", "green", "blue", "cat", "dog", "bird"]
WORDS += ["one", "two", "question", "the", "is", "=", ":", "."]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
POSITIONS = 64
# The letters as a byte-level BPE writes them; the last one is a space.
LETTERS = [*sorted(set("".join(WORDS))), "\u0120"]
LEAVE_OUT = None  # for a key of the common sizes that a config refuses

# Keys with their usual names. If a config has another name for one, it is listed below.
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral": {},
    "qwen2": {"vocab_size": len(SPECIAL) + len(LETTERS)},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {"head_dim": LEAVE_OUT},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": POSITIONS},
    "olmo2": {},
    "stablelm": {},
    "starcoder2": {},
    "cohere": {},
    "cohere2": {},
    "granite": {},
    "glm": {},
    "glm4": {},
    "smollm3": {},
    "exaone4": {},
    "nemotron": {},
    "helium": {},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "granitemoe": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v3": {**EXPERTS, **LATENT},
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": POSITIONS},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 16,
        "num_key_value_heads": 1,
    },
    "jamba": {
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": MAMBA2,
    "granitemoehybrid": {**EXPERTS, **MAMBA2, "layer_types": ["mamba", "attention"]},
    "zamba2": {
        **MAMBA2,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "attention_head_dim": 16,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid"],
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": {
        **EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "xlstm": {"num_heads": 4, "num_blocks": 2, "embedding_dim": 32, "chunk_size": 8},
}
ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "encoder_layerdrop": 0.0,  # otherwise both layers may be skipped
    "decoder_layerdrop": 0.0,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "longt5": T5,
    "switch_transformers": {
        **T5,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "num_experts": 4,
        "expert_capacity": 8,
    },
    "bart": ENCODER_DECODER,
    "mbart": ENCODER_DECODER,
    "plbart": ENCODER_DECODER,
    "pegasus": ENCODER_DECODER,
    "marian": ENCODER_DECODER,
    "m2m_100": ENCODER_DECODER,
    "nllb-moe": {**ENCODER_DECODER, "num_experts": 4, "expert_capacity": 16},
    "blenderbot": ENCODER_DECODER,
    "blenderbot-small": ENCODER_DECODER,
    "led": {
        **ENCODER_DECODER,
        "attention_window": 16,
        "max_encoder_position_embeddings": POSITIONS,
        "max_decoder_position_embeddings": POSITIONS // 2,
    },
}
ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": POSITIONS + 2}
ENCODER: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "camembert": ROBERTA,
    "data2vec-text": ROBERTA,
    "roberta-prelayernorm": ROBERTA,
    "ibert": ROBERTA,
    "xmod": {**ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"},
    "esm": {**ROBERTA, "mask_token_id": 3, "position_embedding_type": "absolute"},
    "luke": {**ROBERTA, "entity_vocab_size": 8, "entity_emb_size": 16},
    "mpnet": ROBERTA,
    "longformer": {**ROBERTA, "attention_window": 8},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "deberta": {},
    "deberta-v2": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "ernie": {},
    "convbert": {"embedding_size": 16, "conv_kernel_size": 3},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "eurobert": {},
    "nomic_bert": {},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "squeezebert": {"embedding_size": 32},
    "nystromformer": {"segment_means_seq_len": 64, "num_landmarks": 8},
    "yoso": {},
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "roformer": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "megatron-bert": {},
    "fnet": {"tpu_short_seq_length": POSITIONS},
    "funnel": {
        "num_hidden_layers": LEAVE_OUT,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 64,
        "block_sizes": [1, 1],
        "block_repeats": [1, 1],
        "num_decoder_layers": 1,
    },
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "canine": {"num_hash_functions": 4, "num_hash_buckets": 64, "downsampling_rate": 4},
}
AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}
ARCHITECTURES = {
    name: (kind, sizes)
    for kind, group in (("causal", CAUSAL), ("seq2seq", SEQ2SEQ), ("encoder", ENCODER))
    for name, sizes in group.items()
}


def tokenizer(kind: str, pad: int = 0, letters: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at white space, with the special tokens of the kind of model.

    `pad` is the id of `<pad>`. With `letters`, every letter is a token, as in a byte-level BPE
    without merges.
    """
    special = list(SPECIAL)
    special[0], special[pad] = special[pad], special[0]
    vocabulary = {word: i for i, word in enumerate(special + (LETTERS if letters else WORDS))}
    if letters:
        backend = Tokenizer(models.BPE(vocabulary, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = {"causal": "<s> $A", "seq2seq": "$A </s>", "encoder": "<s> $A </s>"}[kind]
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(word, vocabulary[word]) for word in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def make(name: str, folder: Path, std: float | None = None, **overrides: Any) -> Path:
    """Write a base of this architecture to `folder`, with `save_pretrained`.

    With `std`, all matrices are drawn with this standard deviation: many configs start with logits
    that are almost equal.
    """
    kind, architecture_sizes = ARCHITECTURES[name]
    sizes = {**SIZES, **architecture_sizes, **overrides}
    config = AutoConfig.for_model(name, **{k: v for k, v in sizes.items() if v is not LEAVE_OUT})
    config.architectures = config.architectures or []  # AutoModel iterates over it for some models
    torch.manual_seed(0)
    model = AUTO[kind].from_config(config)
    if std:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, std)
    model.save_pretrained(folder)
    # transformers loads any tokenizer in the folder of a Qwen2 as a BPE.
    tokenizer(kind, config.pad_token_id, letters=name == "qwen2").save_pretrained(folder)
    return folder
