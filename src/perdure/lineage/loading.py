"""Loading the model of a stage, ready to learn or to answer."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from perdure.config import DEFAULT_ADAPTER, Config
from perdure.errors import PerdureError
from perdure.lineage.dropped import gone
from perdure.lineage.lineage import Lineage
from perdure.models.base import Base, BaseInfo, is_quantized, load_base
from perdure.models.layout import ADAPTER_SETTINGS
from perdure.models.stage_files import load_weights
from perdure.models.traces import AsLoaded, traces
from perdure.parsing import read_json


def base_at(lineage: Lineage, entry: dict[str, Any] | None, info: BaseInfo | None = None) -> Base:
    """Load the base with the weights of a stage.

    Args:
        lineage: the lineage.
        entry: the ledger's line of the stage. None means the model before the first stage.
        info: the result of `read_base` for the base, if there is one already.

    Raises:
        PerdureError: the stage's weights were dropped, or a file does not load.
    """
    config, entry = lineage.config, entry or lineage.origin
    whole: Path | None = None
    if entry and entry["kind"] == "weights":
        whole = lineage.folder(entry)
    if entry:
        check_kept(lineage, entry)
        lineage.check_model(entry)
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
        load_weights(base, lineage.loadable(entry), head=entry["verb"] != "init")
    base.to_accelerator()
    return base


class BaseLoader:
    """Loads the model of one stage after another, but the weights of the base only once.

    The base with its adapter stays in memory while a lineage learns. Each stage loads its adapter
    from its files, just as in a run that resumes at this stage. The whole model is loaded again if
    it is not certain that this gives the same bits:

    - All weights are trained, so a stage has no base and is loaded from its own files.
    - The base is quantised, so its weights cannot be compared.
    - The stage has an adapter of another shape, which some methods that join adapters make.
    - Learning has changed more than the trained weights (`models/traces.py`).
    """

    def __init__(self, info: BaseInfo):
        self.info = info
        self.base: Base | None = None

    def at(self, lineage: Lineage, entry: dict[str, Any] | None) -> Base:
        """Load a stage as `base_at` does. The model returned before must not be used any more."""
        entry = entry or lineage.origin
        if entry:
            check_kept(lineage, entry)
            lineage.check_model(entry)
        adapter = _adapter(lineage, entry)
        base = self._from_memory(adapter, begins=entry is None)
        if base is None:
            base = base_at(lineage, entry, self.info)
            self.keep(base, adapter, begins=entry is None)
        elif entry:
            load_weights(base, lineage.loadable(entry), head=entry["verb"] != "init")
        return self._to_learn(base)

    def fresh(self, config: Config) -> Base:
        """Return the base with a fresh adapter, for settings without a lineage."""
        base = self._from_memory(config.adapter, begins=True)
        if base is None:
            base = load_base(
                config.base,
                config.adapter,
                config.seed,
                quantization=config.quantization,
                revision=config.revision,
                info=self.info,
            )
        return self._to_learn(base)

    def keep(self, base: Base, adapter: dict[str, Any] | None, begins: bool = True) -> None:
        """Keep a base that was just loaded with an adapter; `begins` if the adapter is fresh."""
        if is_quantized(base):
            return
        self.base, self.adapter, self.begins = base, adapter, begins
        self.loaded = AsLoaded(base.model, keep_trained=begins and not base.whole)

    def forget(self) -> None:
        """Load the base again next time, because its weights were sharded meanwhile."""
        self.base = None

    def _from_memory(self, adapter: dict[str, Any] | None, begins: bool) -> Base | None:
        """Return the base in memory in its state after loading, or None if it must be loaded."""
        base, self.base = self.base, None  # so that it is freed before another one is loaded
        if base is None or (begins and not self.begins):
            return None
        if not _alike(self.adapter, adapter):
            return None
        if not self.loaded.restore(base.model):
            return None
        if begins:
            self.loaded.begin(base.model)
        self.base = base
        return base

    def _to_learn(self, base: Base) -> Base:
        """Move the base to the accelerator. A base without an adapter is not kept in memory."""
        before = next(base.model.parameters()).device
        base.to_accelerator()
        if next(base.model.parameters()).device != before:
            vars(base).pop("padding", None)  # it was tested on the other device
            if self.base:
                self.loaded.traces = traces(base.model)  # they include the device
        if base.whole:
            self.base = None
        return base


def _alike(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Return whether two adapters' settings mean the same; LoRA's defaults may be left out."""
    if one is None or other is None:
        return one is other
    return {**DEFAULT_ADAPTER, **one} == {**DEFAULT_ADAPTER, **other}


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
    file = lineage.file(entry, ADAPTER_SETTINGS)
    if file is None:
        raise PerdureError(f"{lineage.folder(entry)}: the ledger has no {ADAPTER_SETTINGS} in it")
    try:
        stored = read_json(file)
        return {**adapter, "r": stored["r"], "lora_alpha": stored["lora_alpha"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PerdureError(f"{file}: not the settings of a LoRA adapter ({error})") from error


def stage_folder(name: str | Path) -> Path:
    """Return the folder of a model that is given by its folder or name.

    If it is a stage whose adapter is within that of a later one, the folder is a temporary one with
    its adapter.

    Raises:
        PerdureError: it is a stage whose weights were deleted, or are not as they were written.
    """
    folder = Path(name).resolve()  # a stage may be given from within its lineage, or by a link
    path = folder.parent.parent
    if folder.parent.name != "stages" or not (path / "lineage.yaml").is_file():
        return Path(name)
    lineage = Lineage(path, edited=True)
    entries = [entry for entry in lineage.stage_entries.values() if "folder" in entry]
    entry = next((e for e in entries if Path(e["folder"]).name == folder.name), None)
    if entry is None:
        return Path(name)
    check_kept(lineage, entry)
    lineage.check_model(entry)
    loadable = lineage.loadable(entry)
    return Path(name) if loadable == lineage.folder(entry) else loadable


def stage_entry(lineage: Lineage, stage: int | None) -> dict[str, Any] | None:
    """Return the line of a stage, or of the newest one for None; the base has no line (None)."""
    number = lineage.head if stage is None else stage
    return lineage.at(number) if number else None


def check_kept(lineage: Lineage, entry: dict[str, Any]) -> None:
    """Check that the weights of a stage were not deleted on purpose.

    Raises:
        PerdureError: they were; the line says how to get them back.
    """
    if lineage.is_gone(entry):
        raise PerdureError(gone(lineage.path, lineage, entry))
