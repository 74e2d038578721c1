"""Saving a stage's weights and loading them again.

A stage of kind `adapter` has one PEFT adapter in PEFT's own files. A stage of kind `weights` has a
whole model as `save_pretrained` writes it, with its tokenizer. Either may also have an encoder's
head. The same weights are always the same bytes: safetensors files have one metadata key, and JSON
has sorted keys and lists.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from perdure.errors import PerdureError, one_line
from perdure.models.base import Base
from perdure.models.classifier import Classifier
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, HEAD_WEIGHTS
from perdure.parsing import parse_json
from perdure.shapes import check_shape


DAMAGED = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError)


def save_weights(base: Base, folder: Path) -> None:
    """Save the adapter or the whole model, and for encoders `head.safetensors`."""
    if base.whole:
        base.network.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    else:
        _save_adapter(base, folder)
    if isinstance(base.model, Classifier):
        save_head(base.model, folder)


def _save_adapter(base: Base, folder: Path) -> None:
    # The vocabulary and so the embeddings are the base's. PEFT would ask the hub to make sure.
    state = get_peft_model_state_dict(base.peft, save_embedding_layers=False)
    tensors = _without_sharing(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    )
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = base.peft.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base.name, "inference_mode": True}
    text = json.dumps(plain(config), sort_keys=True, indent=2)
    (folder / ADAPTER_SETTINGS).write_text(text + "\n")


def _without_sharing(tensors: dict[str, Any]) -> dict[str, Any]:
    """Copy each tensor that shares memory with an earlier one, which safetensors does not allow."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return tensors


def save_head(model: Classifier, folder: Path) -> None:
    """Save `head.safetensors` (`write_head`)."""
    write_head(model.labels, model.weight, model.bias, folder)


def write_head(labels: Sequence[str], weight: Tensor, bias: Tensor, folder: Path) -> None:
    """Write `head.safetensors`: weight and bias, with the labels as `id2label` in its metadata."""
    names = json.dumps(dict(enumerate(labels)), ensure_ascii=False)
    save_file(
        {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in (("weight", weight), ("bias", bias))
        },
        folder / HEAD_WEIGHTS,
        metadata={"id2label": names},
    )


def read_head(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Return the labels of `head.safetensors`, its weight [labels, width] and its bias [labels].

    Raises:
        PerdureError: it does not exist, or does not load.
    """
    try:
        return _read_head(folder)
    except (*DAMAGED, SafetensorError) as error:
        reason = one_line(error)
        raise PerdureError(
            f"{folder}: its head does not load ({reason}); restore {HEAD_WEIGHTS} from a copy"
        ) from error


def check_width(name: str, folder: Path, width: int) -> None:
    """Check that the head in a folder is of a model of this width.

    Raises:
        PerdureError: it is not, or its file does not load.
    """
    _, weight, _ = read_head(folder)
    if weight.shape[1] != width:
        raise PerdureError(
            f"{name}: its head is of another model: it has {weight.shape[1]} numbers for each "
            f"label, and the base {width}; give a head that was learned on this base"
        )


def _read_head(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    stored = load_file(folder / HEAD_WEIGHTS)
    with safe_open(folder / HEAD_WEIGHTS, "pt") as file:  # type: ignore[no-untyped-call]
        metadata = file.metadata() or {}
    if "id2label" not in metadata:
        raise ValueError("its metadata has no labels, `id2label`")
    labels = list(parse_json(metadata["id2label"]).values())
    weight, bias = stored["weight"], stored["bias"]
    check_shape(labels, list[str], "its labels")
    if weight.dim() != 2 or bias.shape != (len(labels),) or len(weight) != len(labels):
        raise ValueError(f"{len(labels)} labels, but a head of another shape")
    return labels, weight, bias


def load_weights(base: Base, folder: Path, head: bool = True) -> None:
    """Load a stage's adapter, if the base has one, and with `head` its head into the base.

    Whole weights are loaded by `load_base` in place of the base's, so only their head is loaded
    here.

    Raises:
        PerdureError: the files do not exist, or belong to another model.
    """
    mismatches: list[str] = []
    try:
        if not base.whole:
            result = set_peft_model_state_dict(base.peft, load_file(folder / ADAPTER_WEIGHTS))
            mismatches = _mismatches(base.peft, result)
        if head and isinstance(base.model, Classifier):
            labels, weight, bias = _read_head(folder)
            base.model.set_head(weight, bias, labels)
    except (*DAMAGED, SafetensorError) as error:
        reason = one_line(error)
        raise PerdureError(f"{folder}: its weights do not load ({reason})") from error
    if mismatches:
        raise PerdureError(f"{folder}: the adapter belongs to another model ({mismatches[0]})")


def _mismatches(model: PeftModel, result: Any) -> list[str]:
    """List the tensors of an adapter that the model does not have, and those that are missing."""
    if model.peft_config["default"].is_prompt_learning:  # PEFT checks the only tensor itself
        return []
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [f"the model has no {name}" for name in result.unexpected_keys] + [
        f"{name} is not in it" for name in result.missing_keys if name in trained
    ]


def plain(value: Any) -> Any:
    """Convert PEFT's settings to plain JSON, with sets in sorted order."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
