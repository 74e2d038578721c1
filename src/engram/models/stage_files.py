"""What a stage stores of a model and how it comes back.

A stage of kind `adapter` holds one PEFT adapter in PEFT's own files, one of kind `weights` a whole
model as `save_pretrained` writes it, with its tokenizer; an encoder's head lies beside either. The
same weights are the same bytes: safetensors with one metadata key, JSON with sorted keys and lists.
"""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from engram.errors import EngramError
from engram.models.base import Base
from engram.models.classifier import Classifier
from engram.models.layout import ADAPTER, ADAPTER_SETTINGS, HEAD


def save_weights(base: Base, folder: Path) -> None:
    """The adapter or the whole model, and for encoders `head.safetensors`."""
    if base.whole:
        base.network.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    else:
        _save_adapter(base, folder)
    if isinstance(base.model, Classifier):
        save_head(base.model, folder)


def _save_adapter(base: Base, folder: Path) -> None:
    # The vocabulary is the base's, so its embeddings are; PEFT would ask the hub to be sure.
    state = get_peft_model_state_dict(base.peft, save_embedding_layers=False)
    tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config = base.peft.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base.name, "inference_mode": True}
    text = json.dumps(plain(config), sort_keys=True, indent=2)
    (folder / ADAPTER_SETTINGS).write_text(text + "\n")


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """A copy of each tensor that shares its memory with an earlier one: safetensors takes none."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return tensors


def save_head(model: Classifier, folder: Path) -> None:
    """`head.safetensors`: weight, bias, and the labels as `id2label` in its metadata."""
    head = {"weight": model.weight, "bias": model.bias}
    names = json.dumps(dict(enumerate(model.labels)), ensure_ascii=False)
    save_file(
        {name: tensor.detach().cpu() for name, tensor in head.items()},
        folder / HEAD,
        metadata={"id2label": names},
    )


def load_weights(base: Base, folder: Path, head: bool = True) -> None:
    """Put a stage's adapter, if the base carries one, and its head into the base.

    Whole weights are loaded in place of the base's (`load_base`), only their head here.

    Raises:
        EngramError: the files are gone, or are of another model.
    """
    unfit: list[str] = []
    try:
        if not base.whole:
            result = set_peft_model_state_dict(base.peft, load_file(folder / ADAPTER))
            unfit = _unfit(base.peft, result)
        if head and isinstance(base.model, Classifier):
            stored = load_file(folder / HEAD)
            with safe_open(folder / HEAD, "pt") as file:  # type: ignore[no-untyped-call]
                labels = json.loads(file.metadata()["id2label"])
            base.model.set_head(stored["weight"], stored["bias"], list(labels.values()))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngramError(f"{folder}: its weights do not load ({reason})") from error
    if unfit:
        raise EngramError(f"{folder}: the adapter is of another model ({unfit[0]})")


def _unfit(model: PeftModel, result: Any) -> list[str]:
    """What an adapter has that the model lacks, and the other way round."""
    if model.peft_config["default"].is_prompt_learning:  # PEFT checks its one tensor itself
        return []
    own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [f"{name} fits nowhere" for name in result.unexpected_keys] + [
        f"{name} is not in it" for name in result.missing_keys if name in own
    ]


def plain(value: Any) -> Any:
    """PEFT's settings as JSON, sets in sorted order."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
