"""A LoRA adapter as the change that it makes to its base, module by module, without the base.

The change of a linear layer is s B A with the scaling s = alpha / r, or alpha / sqrt(r) with
rsLoRA. `rank_pattern` and `alpha_pattern` may name other ranks and alphas for some modules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from perdure.errors import PerdureError, one_line
from perdure.merging.checkpoint import Stored, Tensors
from perdure.merging.fold import Piece
from perdure.models.adapter_disabled import HARMLESS
from perdure.models.as_is import settings_file
from perdure.models.layout import ADAPTER_WEIGHTS
from perdure.parsing import read_json


PREFIX = "base_model.model."
FACTORS = {  # how PEFT names the factors, and whether they are those of a table of embeddings
    "lora_A.weight": ("lora_B.weight", False),
    "lora_embedding_A": ("lora_embedding_B", True),
}
UPS = tuple(f".{up}" for up, _ in FACTORS.values())
# Settings whose effect is computed here, or that have none on what a stored adapter adds.
UNDERSTOOD = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "loftq_config", "eva_config", "qalora_group_size", "runtime_config"),
    *("lora_bias", "ensure_weight_tying", "megatron_core"),
}
REASONS = {
    "use_dora": "DoRA scales the weights themselves, so its change is no sum of factors",
    "target_parameters": "it changes packed experts",
    "layer_replication": "it has other layers than its base",
    "trainable_token_indices": "it changes single rows of the embeddings",
}
DAMAGED = "the file is damaged: restore it, or save the adapter again"
EXPORT = "merge it into its base with PEFT's merge_and_unload, and give that model"


@dataclass(frozen=True)
class Module:
    """The factors of one module of the base.

    Args:
        name: the name of the module.
        down: the name of A, of shape [r, d_in].
        up: the name of B, of shape [d_out, r].
        scaling: by what B A is multiplied.
        transposed: whether the base stores the weights as [d_in, d_out], as GPT-2 and tables of
            embeddings do.
        embedding: whether it is a table of embeddings.
    """

    name: str
    down: str
    up: str
    scaling: float
    transposed: bool
    embedding: bool


class Adapter:
    """A LoRA adapter's change of its base's tensors.

    Args:
        folder: the folder that PEFT's `save_pretrained` wrote.

    Raises:
        PerdureError: it has no LoRA adapter, one that changes more than a sum can tell, or its
            files are damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = _settings(folder)
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise PerdureError(
                f"{folder}: no {ADAPTER_WEIGHTS} in it; a pickled adapter cannot be loaded, save "
                "it again with safetensors"
            )
        self.tensors = Tensors([folder / ADAPTER_WEIGHTS])
        self.modules: dict[str, Module] = {}  # by the name of the module
        self.replaced: dict[str, str] = {}  # tensors of the base that it has whole, by their names
        self.biases: dict[str, str] = {}  # what it adds to biases, by their names
        self._sort()

    def _sort(self) -> None:
        """Sort the adapter's tensors by what they do to the base."""
        ups = set()
        for name in self.tensors.stored:
            path = name.removeprefix(PREFIX)
            down = next((end for end in FACTORS if path.endswith(f".{end}")), None)
            if down is not None:
                up, embedding = FACTORS[down]
                module = path.removesuffix(f".{down}")
                full = f"{name.removesuffix(down)}{up}"
                self.modules[module] = self._module(module, name, full, embedding)
                ups.add(full)
            elif path.endswith(".lora_B.bias"):
                self.biases[f"{path.removesuffix('.lora_B.bias')}.bias"] = name
            elif "lora_" not in path:
                self.replaced[path.replace(".base_layer.", ".")] = name
        unknown = [
            name
            for name in self.tensors.stored
            if "lora_" in name
            and name not in ups
            and not name.endswith((".lora_B.bias", *(f".{end}" for end in FACTORS)))
        ]
        if unknown and unknown[0].endswith(UPS):
            raise PerdureError(f"{self.folder}: lacks the factor A of {unknown[0]}; {DAMAGED}")
        if unknown:
            raise PerdureError(f"{self.folder}: {unknown[0]} is of no known use; {EXPORT}")
        if not self.modules:
            raise PerdureError(f"{self.folder}: has no factors of a LoRA adapter; save it again")

    def _module(self, name: str, down: str, up: str, embedding: bool) -> Module:
        stored = self.tensors.stored
        if up not in stored:
            raise PerdureError(f"{self.folder}: lacks {up}, a factor of {name}; {DAMAGED}")
        shapes = [stored[part].shape for part in (down, up)]
        factors = f"the factors of {name} are of shapes {_by(shapes[0])} and {_by(shapes[1])}"
        if any(len(shape) != 2 for shape in shapes):
            raise PerdureError(
                f"{self.folder}: {factors}; only linear layers and embeddings can be merged. "
                f"{EXPORT}"
            )
        if shapes[0][0] != shapes[1][1]:
            raise PerdureError(f"{self.folder}: {factors}, which have no product; {DAMAGED}")
        settings, rank = self.settings, shapes[0][0]
        patterns = settings.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(list(patterns), name), settings.get("lora_alpha", 8))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise PerdureError(f"{self.folder}: lora_alpha {alpha!r} is no number; save it again")
        scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        transposed = embedding or bool(settings.get("fan_in_fan_out"))
        return Module(name, down, up, scaling, transposed, embedding)

    @property
    def changed(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of the base that the adapter changes, by name."""
        shapes = {}
        for module in self.modules.values():
            down, up = (self.tensors.stored[part].shape for part in (module.down, module.up))
            shape = (up[0], down[1])
            shapes[f"{module.name}.weight"] = shape[::-1] if module.transposed else shape
        for names in (self.replaced, self.biases):
            shapes |= {name: self.tensors.stored[own].shape for name, own in names.items()}
        return shapes

    def leave_out(self, name: str) -> None:
        """Count a tensor of the base as unchanged."""
        self.modules.pop(name.removesuffix(".weight"), None)
        self.replaced.pop(name, None)
        self.biases.pop(name, None)

    @property
    def stored(self) -> Mapping[str, Stored]:
        return self.tensors.stored

    def change(self, name: str, piece: Piece, base: Tensor) -> Tensor:
        """Return a piece of the change of a tensor, in the data type of the base's piece.

        Args:
            name: the name of the tensor in the base.
            piece: which piece.
            base: the base's weights there.
        """
        change = torch.zeros_like(base)
        if name in self.replaced:
            change = self.tensors.read(self.replaced[name], piece).to(base.dtype) - base
        if name in self.biases:
            added = self.tensors.read(self.biases[name]).to(base.dtype)
            scaling = self.modules[name.removesuffix(".bias")].scaling
            change = change + scaling * _part(added, piece)
        module = self.modules.get(name.removesuffix(".weight")) if name.endswith("weight") else None
        if module is not None:
            change = change + self._product(module, piece, base.dtype)
        return change

    def _product(self, module: Module, piece: Piece, dtype: torch.dtype) -> Tensor:
        """Return s B A, or some of its rows, as the base stores the weights."""
        down, up = self.factors(module, dtype)
        first, second = (down.T, up.T) if module.transposed else (up, down)
        return module.scaling * (_part(first, piece) @ second)

    def factors(self, module: Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and B of a module."""
        down, up = (self.tensors.read(part).to(dtype) for part in (module.down, module.up))
        return down, up


def _part(rows: Tensor, piece: Piece) -> Tensor:
    return rows[piece.index] if piece.index else rows


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a LoRA adapter.

    Raises:
        PerdureError: they cannot be read, or have an effect that is not computed here.
    """
    file = settings_file(folder)
    try:
        settings = read_json(file)
        kind = str(settings["peft_type"]).upper()
        default = LoraConfig().to_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise PerdureError(
            f"{file}: not an adapter's settings ({one_line(error)}); save it again"
        ) from error
    if kind != "LORA":
        raise PerdureError(f"{folder}: is a {kind} adapter, and only LoRA can be merged; {EXPORT}")
    for key, value in settings.items():
        if key in UNDERSTOOD or value in (None, False, {}, [], default.get(key)):
            continue
        reason = REASONS.get(key, f"its setting {key} has an effect that merging does not know")
        raise PerdureError(f"{folder}: {reason}; {EXPORT}")
    start = settings.get("init_lora_weights", True)
    if start not in HARMLESS:
        raise PerdureError(
            f"{folder}: init_lora_weights is {start!r}, which changes the base's weights as well; "
            "convert it with PEFT's path_initial_model_for_weight_conversion, or "
            f"{EXPORT}"
        )
    return settings
