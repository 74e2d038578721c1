"""The model of a stage, ready to learn or to answer."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from engram.errors import EngramError
from engram.lineage.lineage import Lineage
from engram.models.base import Base, BaseInfo, load_base
from engram.models.layout import ADAPTER_SETTINGS, WHOLE
from engram.models.stage_files import load_weights


def base_at(lineage: Lineage, entry: dict[str, Any] | None, info: BaseInfo | None = None) -> Base:
    """The base with a stage's weights; as the lineage began before the first stage (None).

    `info` is what was read of the base before, if it was.

    Raises:
        EngramError: the stage's whole weights are no longer kept, or files do not load.
    """
    config, entry = lineage.config, entry or lineage.origin
    whole: Path | None = None
    if entry and entry["kind"] == "weights":
        if is_gone(lineage, entry):
            raise EngramError(gone(lineage, entry))
        whole = lineage.folder(entry)
    base = load_base(
        config.base,
        _adapter(lineage, entry),
        config.seed,
        config.quantization,
        lineage.pin.get("revision"),
        whole,
        info=info,
    )
    if entry:
        load_weights(base, lineage.folder(entry), head=entry["verb"] != "init")
    if torch.accelerator.is_available():
        base.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    return base


def is_untouched(lineage: Lineage, entry: dict[str, Any] | None, base: Base) -> bool:
    """Whether a stage is the base itself, so that the fresh adapter on it has no say.

    An adapter may add something before it has learned (prefix tuning, LoRA with
    `init_lora_weights: false`). One that the lineage began with is a part of its stage 0.
    """
    return entry is None and lineage.origin is None and not base.whole


def as_stored(
    lineage: Lineage, entry: dict[str, Any] | None, base: Base
) -> AbstractContextManager[Any]:
    """Around what is asked of a stage: a fresh adapter is switched off for stage 0."""
    untouched = is_untouched(lineage, entry, base)
    return base.peft.disable_adapter() if untouched else nullcontext()


def _adapter(lineage: Lineage, entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a stage's adapter; a LoRA that holds several tasks has a higher rank."""
    adapter = lineage.config.adapter
    if entry is None or adapter is None or adapter.get("peft_type", "LORA").upper() != "LORA":
        return adapter
    file = lineage.folder(entry) / ADAPTER_SETTINGS
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        return {**adapter, "r": written["r"], "lora_alpha": written["lora_alpha"]}
    except (OSError, ValueError, KeyError) as error:
        raise EngramError(f"{file}: not the settings of a LoRA adapter ({error})") from error


def stage_entry(lineage: Lineage, stage: int | None) -> dict[str, Any] | None:
    """The line of a stage, the newest for None; None for the base."""
    number = lineage.head if stage is None else stage
    return lineage.at(number) if number else None


def is_gone(lineage: Lineage, entry: dict[str, Any]) -> bool:
    """Whether a stage had whole weights that are not kept any more."""
    return entry.get("kind") == "weights" and not any(lineage.folder(entry).glob(WHOLE))


def gone(lineage: Lineage, entry: dict[str, Any]) -> str:
    """What to say of it: which stages still have theirs."""
    made = [e for e in lineage.made.values() if e["stage"] and not is_gone(lineage, e)]
    kept = ", ".join(str(e["stage"]) for e in reversed(made))
    return (
        f"{lineage.path}: the weights of stage {entry['stage']} are gone, only its scores remain; "
        f"there are those of stage {kept}, and the base (0)"
    )
