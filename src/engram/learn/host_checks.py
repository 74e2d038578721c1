"""What a guest asks of its Trainer, looked at before the first step."""

import inspect
import warnings
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engram.data.tokens import Kind
from engram.errors import EngramError
from engram.learn.given import is_sft
from engram.learn.host import for_model


CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
INSIDE = ("lomo", "layerwise")  # in the name of an optimizer that steps inside backward


def check_host(args: TrainingArguments, state: Any, model: nn.Module, where: str) -> None:
    """Refuse settings under which a callback does not see whole weights or true gradients.

    Raises:
        EngramError: with the way out.
    """
    accelerator = AcceleratorState()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = str(getattr(args.optim, "value", args.optim))
    sharded = accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    faults = {
        "fp16, whose gradients are scaled; use bf16": accelerator.mixed_precision == "fp16",
        "sharded weights (FSDP, DeepSpeed, tensor parallel); train on one GPU or with DDP": (
            sharded or any(isinstance(p, DTensor) for p in parameters)
        ),
        "weights on several devices; load the model without device_map, or on one device": (
            len({p.device for p in parameters}) > 1
        ),
        f"optim={optim}, which steps inside backward; use adamw_torch": any(
            name in optim for name in INSIDE
        ),
        "learning_rate 0, which has no schedule; set it above 0": not args.learning_rate,
        "a hyperparameter search; train with settings that are found": state.is_hyper_param_search,
    }
    for fault, found in faults.items():
        if found:
            raise EngramError(f"{where}: this Trainer has {fault}")


def kind_of_batch(model: nn.Module, batch: dict[str, Any], where: str) -> Kind:
    """How the loss of a model reads the labels of a batch.

    Raises:
        EngramError: it is not cross-entropy over next tokens, target tokens or classes.
    """
    bare = _bare(model)
    labels, config = batch.get("labels"), getattr(bare, "config", None)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and config is not None:
        if labels.dim() == 1:
            return "encoder"
        if config.is_encoder_decoder:
            return "seq2seq"
        named = any(c.__name__ in CAUSAL for c in type(bare).__mro__)
        if named or getattr(bare, "loss_type", None) == "ForCausalLM":
            return "causal"
    raise EngramError(
        f"{where}: cannot rehearse with {type(bare).__name__} and these features; it takes causal "
        "LMs, encoder-decoders and single-label classifiers, and features that have labels"
    )


def excess(args: TrainingArguments) -> int:
    """How many times too large a gradient is that a mis-scaling Trainer makes."""
    processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
    return args.gradient_accumulation_steps * processes


@torch.no_grad()
def warn_if_mis_scaled(
    args: TrainingArguments, model: nn.Module, batch: dict[str, Any], where: str
) -> None:
    """Warn of a model that takes `num_items_in_batch`, and ignores it.

    The Trainer then takes its loss for one over the whole accumulated batch and adds up means where
    it should divide. Found by trying: the loss must depend on the number.
    """
    bare = _bare(model)
    parameters = inspect.signature(type(bare).forward).parameters.values()
    swallows = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    asked = "labels" in batch and getattr(bare, "accepts_loss_kwargs", swallows)
    if excess(args) == 1 or not asked or is_sft(args) or args.label_smoothing_factor:
        return
    training, batch = model.training, for_model(batch, args)
    model.eval()
    numbers = torch.tensor([1, 2], device=args.device)
    outputs = [model(**batch, num_items_in_batch=number) for number in numbers]
    model.train(training)
    one, two = (made["loss"] if isinstance(made, dict) else made[0] for made in outputs)
    if torch.equal(one, two):
        warnings.warn(
            f"{where}: {type(bare).__name__} ignores num_items_in_batch, so the gradients of this "
            f"Trainer are {excess(args)} times too large; train without gradient accumulation, or "
            "set trainer.model_accepts_loss_kwargs = False",
            stacklevel=2,
        )


def _bare(model: Any) -> Any:
    """Without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
