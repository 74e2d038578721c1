"""Loading the model of a stage, ready to learn or to answer."""

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
    """Load the base with the weights of a stage.

    Args:
        lineage: the lineage.
        entry: the ledger's line of the stage. None means the model before the first stage.
        info: the result of `read_base` for the base, if there is one already.

    Raises:
        EngramError: the stage's whole weights are no longer kept, or a file does not load.
    """
    config, entry = lineage.config, entry or lineage.origin
    whole: Path | None = None
    if entry and entry["kind"] == "weights":
        if is_gone(lineage, entry):
            raise EngramError(gone(lineage, entry))
        whole = lineage.folder(entry)
    base = load_base(
        config.base,
        adapter=_adapter(lineage, entry),
        seed=config.seed,
        quantization=config.quantization,
        revision=lineage.pin.get("revision"),
        weights=whole,
        info=info,
    )
    if entry:
        load_weights(base, lineage.folder(entry), head=entry["verb"] != "init")
    if torch.accelerator.is_available():
        base.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    return base


def is_untouched(lineage: Lineage, entry: dict[str, Any] | None, base: Base) -> bool:
    """Return whether a stage is the base itself, so that the fresh adapter must have no effect.

    Some adapters change the output before they have learned anything (prefix tuning, LoRA with
    `init_lora_weights: false`). An adapter with which the lineage began is part of its stage 0.
    """
    return entry is None and lineage.origin is None and not base.whole


def as_stored(
    lineage: Lineage, entry: dict[str, Any] | None, base: Base
) -> AbstractContextManager[Any]:
    """Return a context in which the model answers as the stage: stage 0 has no fresh adapter."""
    untouched = is_untouched(lineage, entry, base)
    return base.peft.disable_adapter() if untouched else nullcontext()


def _adapter(lineage: Lineage, entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the settings of a stage's adapter; a LoRA of several tasks has a higher rank."""
    adapter = lineage.config.adapter
    if entry is None or adapter is None or adapter.get("peft_type", "LORA").upper() != "LORA":
        return adapter
    file = lineage.folder(entry) / ADAPTER_SETTINGS
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {**adapter, "r": stored["r"], "lora_alpha": stored["lora_alpha"]}
    except (OSError, ValueError, KeyError) as error:
        raise EngramError(f"{file}: not the settings of a LoRA adapter ({error})") from error


def stage_entry(lineage: Lineage, stage: int | None) -> dict[str, Any] | None:
    """Return the line of a stage, or of the newest one for None; the base has no line (None)."""
    number = lineage.head if stage is None else stage
    return lineage.at(number) if number else None


def is_gone(lineage: Lineage, entry: dict[str, Any]) -> bool:
    """Return whether a stage had whole weights that are not kept any more."""
    return entry.get("kind") == "weights" and not any(lineage.folder(entry).glob(WHOLE))


def gone(lineage: Lineage, entry: dict[str, Any]) -> str:
    """Return the error line for a stage whose weights are gone; it lists the others."""
    present = [
        line
        for line in lineage.stage_entries.values()
        if line["stage"] and not is_gone(lineage, line)
    ]
    kept = ", ".join(str(line["stage"]) for line in reversed(present))
    return (
        f"{lineage.path}: the weights of stage {entry['stage']} are gone, only its scores remain; "
        f"there are those of stage {kept}, and the base (0)"
    )
