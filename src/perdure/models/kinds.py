"""The three kinds of base, and the kind of a base with a given config."""

from typing import Any, Literal

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from perdure.errors import PerdureError


Kind = Literal["causal", "seq2seq", "encoder"]
AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}


def kind_of(config: Any, name: str) -> Kind:
    """Return the kind of a base from its config.

    BERT is in both mappings, so a family with a masked LM is an encoder, even if it also has a
    causal LM.

    Raises:
        PerdureError: the model is not a language model of one of these kinds.
    """
    if config.is_encoder_decoder:
        return "seq2seq"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise PerdureError(
        f"base {name!r}: model type {config.model_type!r} is neither a causal, an "
        "encoder-decoder nor an encoder language model; choose a text model"
    )
