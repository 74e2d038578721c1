"""The three kinds of base, and which of its labels each kind predicts.

A causal model's logits are [batch, time, vocabulary], and position t predicts label t + 1. An
encoder-decoder's have the same shape, and position t predicts label t. An encoder's are
[batch, labels]; its labels are [batch].
"""

from typing import Any, Literal

from torch import Tensor
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


def predicted(labels: Tensor, kind: Kind) -> Tensor:
    """The labels that the model predicts; a causal model does not predict the first one."""
    return labels[:, 1:] if kind == "causal" else labels
