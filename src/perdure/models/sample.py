"""A model's output for one fixed text, by which two forms of a model are compared."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


TEXT = "The same text is read by both models, and both have to make the same of it."
TOKENS = 16


def sample_output(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return logits [1, tokens, vocabulary], or an encoder's hidden states [1, tokens, width].

    They are in fp32 on the CPU, and computed without dropout.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        output = forward(model, tokenizer)
    for module, training in modes:
        module.training = training
    return output.float().cpu()


def forward(model: Any, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the output of `sample_output` without changing the model's mode or the gradients."""
    embeddings: Any = model.get_input_embeddings()
    device, num_embeddings = embeddings.weight.device, len(embeddings.weight)
    ids: Any = tokenizer(TEXT, verbose=False)["input_ids"]
    ids = [i % num_embeddings for i in ids[:TOKENS]]
    batch = {"input_ids": torch.tensor([ids], device=device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    output = model(**batch)
    return output.logits if "logits" in output else output.last_hidden_state


def alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether no value differs by more than `tolerance` times the largest of `other`."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
