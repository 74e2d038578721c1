"""The three kinds of base, and which one a config is of."""

from typing import Any, Literal

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from engram.errors import EngramError


Kind = Literal["causal", "seq2seq", "encoder"]
AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}


def kind_of(config: Any, name: str) -> Kind:
    """BERT is in both mappings; a masked-LM family that is not a decoder is an encoder."""
    if config.is_encoder_decoder:
        return "seq2seq"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise EngramError(
        f"base {name!r}: model type {config.model_type!r} is neither a causal, an "
        "encoder-decoder nor an encoder language model; choose a text model"
    )
