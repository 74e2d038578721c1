"""What a stage stores of a model and how it comes back: one PEFT adapter, and an encoder's head.

The files are PEFT's own, written so that the same weights are the same bytes: safetensors with one
metadata key, JSON with sorted keys and lists.
"""

import json
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engram.errors import EngramError
from engram.models import Base, Classifier


ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"


def save_weights(base: Base, folder: Path) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`; for encoders `head.safetensors`."""
    state = get_peft_model_state_dict(base.peft)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config = base.peft.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base.name, "inference_mode": True}
    text = json.dumps(_plain(config), sort_keys=True, indent=2)
    (folder / "adapter_config.json").write_text(text + "\n")
    if isinstance(base.model, Classifier):
        head = {"weight": base.model.weight, "bias": base.model.bias}
        names = json.dumps(dict(enumerate(base.model.labels)), ensure_ascii=False)
        save_file(
            {name: tensor.detach().cpu() for name, tensor in head.items()},
            folder / HEAD,
            metadata={"id2label": names},
        )


def load_weights(base: Base, folder: Path) -> None:
    """Put a stage's adapter (and head) into a base that carries an adapter of the same settings.

    Raises:
        EngramError: the files are gone, or are of another model.
    """
    try:
        result = set_peft_model_state_dict(base.peft, load_file(folder / ADAPTER))
        if isinstance(base.model, Classifier):
            head = load_file(folder / HEAD)
            with safe_open(folder / HEAD, "pt") as file:  # type: ignore[no-untyped-call]
                labels = json.loads(file.metadata()["id2label"])
            base.model.set_head(head["weight"], head["bias"], list(labels.values()))
    except (OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngramError(f"{folder}: the stage's weights do not load ({reason})") from error
    if result.unexpected_keys:
        raise EngramError(
            f"{folder}: the adapter is of another model ({result.unexpected_keys[0]} fits nowhere)"
        )


def _plain(value: Any) -> Any:
    """PEFT's settings as JSON, sets in sorted order."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
