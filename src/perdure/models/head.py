"""The logits of a language model only where they predict a label.

A large vocabulary makes the output head and the loss expensive: SmolLM2's head has a fifth of its
multiplications. Most positions of a batch are prompt or padding, and their logits are not used.
"""

from typing import Any

from torch import Tensor, nn

from perdure.models.kinds import Kind


def predicting(labels: Tensor, kind: Kind) -> Tensor:
    """Which logits predict a label that is not -100: [batch, time], of an encoder [batch].

    Position t of a causal model predicts label t + 1, and that of an encoder-decoder label t.
    """
    is_label = labels != -100
    return nn.functional.pad(is_label[:, 1:], (0, 1)) if kind == "causal" else is_label


def run_with_logits_at(model: Any, bare: Any, where: Tensor, **inputs: Any) -> Any:
    """Run a model and return its outputs, whose `logits` are those at some positions.

    The head gets the hidden states of these positions alone, so that no other logits are computed.
    A model that is compiled, that has an activated LoRA (`activates_adapter`), or that calls its
    head in another way than with hidden states [batch, time, width], computes all logits, and those
    of the positions are taken from them.

    Args:
        model: the model to call, which may be wrapped, for example in DDP.
        bare: the same model without wrappers, of which the head is asked for.
        where: [batch, time], the positions.
        **inputs: the inputs of the model.

    Returns:
        The model's outputs; their logits are [positions, vocabulary], the rows one after another.
    """
    is_whole = _is_compiled(model) or _is_compiled(bare) or activates_adapter(bare)
    head = None if is_whole else bare.get_output_embeddings()

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        hidden, *more = arguments
        if isinstance(hidden, Tensor) and hidden.shape[:-1] == where.shape:
            return (hidden[where].unsqueeze(0), *more)
        return None

    handle = head.register_forward_pre_hook(select) if head is not None else None
    try:
        outputs = model(**inputs)
    finally:
        if handle is not None:
            handle.remove()
    logits = outputs.logits
    outputs.logits = logits[where] if logits.shape[:-1] == where.shape else logits.squeeze(0)
    return outputs


def activates_adapter(model: Any) -> bool:
    """Return whether an adapter counts only after certain tokens of a row (activated LoRA).

    Its layers then need whole rows, from the prompt on.
    """
    configs = getattr(model, "peft_config", {}).values()
    return any(getattr(config, "alora_invocation_tokens", None) for config in configs)


def _is_compiled(model: Any) -> bool:
    """Return whether a model, or one that it wraps, is compiled, and so has fixed hooks."""
    while isinstance(model, nn.Module):
        if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
            return True
        model = getattr(model, "module", None)
    return False
