"""Checkpoints that were trained elsewhere: whether they fit a model, and loading them into it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from perdure.errors import PerdureError, one_line
from perdure.models.adapter_disabled import HARMLESS
from perdure.models.as_is import base_of_adapter
from perdure.models.base import Base, with_adapter
from perdure.models.classifier import Classifier
from perdure.models.hashing import file_hash
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, HEAD_WEIGHTS, WHOLE
from perdure.models.pins import differing, pin
from perdure.models.stage_files import load_weights, plain, read_head
from perdure.parsing import read_json


# Settings of an adapter that say how it was made, or that the names and shapes of its weights show.
NOT_COMPARED = {
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type"),
    *("peft_version", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "init_lora_weights", "eva_config", "ensure_weight_tying"),
}


def weight_files(folder: Path, whole: bool) -> list[Path]:
    """Return the files of a checkpoint's weights.

    Raises:
        PerdureError: there are none, or they are of the other kind than wanted.
    """
    if not folder.is_dir():
        raise PerdureError(f"{folder}: no such folder; give the folder of the checkpoint")
    if whole and (folder / ADAPTER_SETTINGS).is_file():
        raise PerdureError(
            f"{folder}: is an adapter, but the stages of this lineage have whole weights; merge it "
            "into its base and save the whole model"
        )
    files = sorted(
        file
        for file in folder.glob(WHOLE if whole else ADAPTER_WEIGHTS)
        if file.suffix == ".safetensors"
    )
    if not files:
        wanted = "whole weights" if whole else "an adapter"
        raise PerdureError(
            f"{folder}: no {WHOLE.rstrip('*') if whole else ADAPTER_WEIGHTS} in it, and the stages "
            f"of this lineage have {wanted}; save it with save_pretrained, as safetensors"
        )
    return files


def check_base_of(folder: Path, pinned: dict[str, Any], whose: str) -> None:
    """Check that an adapter was trained on the base of a pin.

    Args:
        folder: the folder of the adapter.
        pinned: the pin of the base.
        whose: what the base is of, for the error line.

    Raises:
        PerdureError: it names a base with other weights, or one that is not here to compare.
    """
    name, revision = base_of_adapter(str(folder))
    ours = pinned["name"]
    if name == ours:
        return
    try:
        other = pin(name, revision)
    except PerdureError as error:
        of = "" if whose == ours else f", the base of {whose}"
        raise PerdureError(
            f"{folder}: was trained on base {name!r}, which is not here to compare with {ours!r}"
            f"{of}; if they are the same, write {ours!r} as its base_model_name_or_path in "
            "adapter_config.json"
        ) from error
    changed = [file for file in differing(pinned, other) if file.endswith(".safetensors")]
    if changed:
        raise PerdureError(
            f"{folder}: was trained on another base, {name!r}: its {changed[0]} differs from that "
            f"of {whose}" + ("" if whose == ours else f", {ours!r}")
        )


def check_fit(base: Base, folder: Path) -> None:
    """Check that a checkpoint has the weights of a model, of the same shapes and with one meaning.

    Raises:
        PerdureError: it does not; the line names the first setting or weight that differs.
    """
    if not base.whole:
        _check_adapter_settings(base, folder)
    wanted = {name: tuple(weights.shape) for name, weights in _weights(base).items()}
    stored = _shapes(weight_files(folder, base.whole))
    required = wanted
    if base.whole:  # of tied weights, a file has one
        required = {name: wanted[name] for name, _ in base.network.named_parameters()}
    for name in [*required, *stored]:
        if name not in stored or name not in wanted:
            lacking = "it" if name not in stored else "the lineage's model"
            raise PerdureError(f"{folder}: is of another shape: {lacking} has no {name}")
        if stored[name] != wanted[name]:
            sizes = [" x ".join(map(str, shape)) for shape in (stored[name], wanted[name])]
            raise PerdureError(
                f"{folder}: is of another shape: {name} is {sizes[0]}, and {sizes[1]} in the "
                "lineage's model"
            )


def load_checkpoint(base: Base, folder: Path, adapter: dict[str, Any] | None) -> None:
    """Load a checkpoint that fits (`check_fit`) into a model.

    Args:
        base: the model. If the checkpoint is an adapter of another rank, the model gets an adapter
            of that rank first.
        folder: the folder of the checkpoint. If it has a head, an encoder gets that.
        adapter: the settings of the lineage's adapter.
    """
    if isinstance(base.model, Classifier) and (folder / HEAD_WEIGHTS).is_file():
        labels, weight, bias = read_head(folder)
        base.model.set_head(weight, bias, labels)
    if not base.whole:
        _fit_rank(base, folder, adapter or {})
        load_weights(base, folder, head=False)
        return
    for file in weight_files(folder, whole=True):
        base.network.load_state_dict(load_file(file), strict=False)


def _fit_rank(base: Base, folder: Path, adapter: dict[str, Any]) -> None:
    """Replace a model's LoRA adapter by a fresh one if the one in a folder has another rank."""
    ours: Any = base.peft.peft_config["default"]
    if getattr(ours, "r", None) is None:
        return
    theirs = read_json(folder / ADAPTER_SETTINGS)
    size = {key: theirs[key] for key in ("r", "lora_alpha")}
    if size["r"] != ours.r:
        settings = {**adapter, **size}
        adapted: Any = with_adapter(base.peft.unload(), base.kind, settings, seed=0)
        if isinstance(base.model, Classifier):
            base.model.backbone = adapted
        else:
            base.model = adapted


def adapter_tensors(base: Base) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's adapter, as PEFT names them in its files."""
    return get_peft_model_state_dict(base.peft, save_embedding_layers=False)


def hashes(folder: Path, whole: bool) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint's files of weights, by name."""
    return {file.name: file_hash(file) for file in weight_files(folder, whole)}


def _weights(base: Base) -> dict[str, torch.Tensor]:
    if base.whole:
        return base.network.state_dict()
    return adapter_tensors(base)


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:  # type: ignore[no-untyped-call]
                for name in tensors.keys():  # noqa: SIM118
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise PerdureError(
                f"{file}: does not load ({one_line(error)}); save it again"
            ) from error
    return shapes


def _check_adapter_settings(base: Base, folder: Path) -> None:
    try:
        theirs: dict[str, Any] = plain(PeftConfig.from_pretrained(str(folder)).to_dict())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PerdureError(
            f"{folder}: its {ADAPTER_SETTINGS} cannot be read ({one_line(error)}); give the folder "
            "that PEFT's save_pretrained wrote"
        ) from error
    ours: dict[str, Any] = plain(base.peft.peft_config["default"].to_dict())
    start = theirs.get("init_lora_weights", True)
    different = [key for key in ours if key not in NOT_COMPARED and ours[key] != theirs.get(key)]
    if start not in HARMLESS and start != ours.get("init_lora_weights"):
        different.append("init_lora_weights")
    if different:
        key = different[0]
        raise PerdureError(
            f"{folder}: is not an adapter as this lineage has them: {key} is {theirs.get(key)!r}, "
            f"and {ours.get(key)!r} in the lineage; train it with the lineage's `adapter:` settings"
        )
