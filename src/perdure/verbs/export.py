"""`export` writes a single merged model, which needs neither Perdure nor PEFT to load."""

import shutil
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel, PeftType
from torch import Tensor

from perdure.config import Dtype
from perdure.disk import check_new, fresh_folder, remove
from perdure.errors import PerdureError, nearest, one_line
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import as_stored, base_at, check_kept, is_untouched, stage_entry
from perdure.models.base import Base, kind_of, load_config_and_tokenizer, load_pretrained
from perdure.models.classifier import Classifier
from perdure.models.layout import CARD
from perdure.models.merging import merge
from perdure.models.pins import check_pin
from perdure.models.sample import alike, sample_output
from perdure.models.stage_files import save_head
from perdure.verbs.card import facts_of, model_card
from perdure.verbs.shareable import check_shareable, copy_shareable
from perdure.writing import publish, writing


def export_adapter(path: str | Path, out: str | Path, stage: int | None) -> Path:
    """Write a stage's adapter without merging it; return its folder. See `perdure.api.export`."""
    out, lineage = Path(out), Lineage(path)
    check_new(out)
    _check_is_one(lineage, stage)
    entry = stage_entry(lineage, stage) or lineage.origin
    if entry is None:
        raise PerdureError(f"{path}: stage 0 is the base, which has no adapter")
    if entry["kind"] != "adapter":
        raise PerdureError(
            f"{path}: all weights are trained (adapter: null), so stage {entry['stage']} has no "
            "adapter; leave out --adapter"
        )
    check_kept(lineage, entry)
    check_pin(lineage.pin)
    name, revision = lineage.config.base, lineage.pin.get("revision")
    settings, tokenizer = load_config_and_tokenizer(name, revision)
    facts = facts_of(lineage, entry, tokenizer)
    base_kind = kind_of(settings, name)
    card = model_card(base_kind, lineage.pin, entry, kind="adapter", place=str(out), facts=facts)
    unfinished = out.parent / f".{out.name}.new"
    with writing(out, unfinished=unfinished):
        remove(unfinished)
        copy_shareable(lineage, entry, tokenizer, unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        publish(unfinished, out)
    return out


def export(path: str | Path, out: str | Path, stage: int | None, dtype: str | None) -> Path:
    """Write a stage as a single model and return its folder. See `perdure.api.export`."""
    out = Path(out)
    check_new(out)
    if dtype is not None and dtype not in get_args(Dtype):
        raise PerdureError(f"dtype {dtype!r} is not a choice; {nearest(dtype, get_args(Dtype))}")
    lineage = Lineage(path)
    entry = stage_entry(lineage, stage)
    _check_is_one(lineage, stage)
    check_pin(lineage.pin)
    lineage.config.quantization = None
    base = base_at(lineage, entry)
    base_dtype = (base.network if base.whole else base.peft.get_base_model()).dtype
    if not base.whole:
        base.network.float()
    with as_stored(lineage, entry, base):
        expected = sample_output(base.network, base.tokenizer)
    untouched = is_untouched(lineage, entry, base)
    merged = _without_adapter(base) if untouched else _merged(base, str(path))
    merged = merged.to(getattr(torch, dtype) if dtype else base_dtype)
    unfinished = out.parent / f".{out.name}.new"
    facts = facts_of(lineage, entry, base.tokenizer)
    card = model_card(base.kind, lineage.pin, entry, kind="merged", place=str(out), facts=facts)
    with writing(out, unfinished=unfinished):
        fresh_folder(unfinished)
        merged.save_pretrained(unfinished)
        _check_written(unfinished, base, expected)
        written = base.tokenizer.save_pretrained(unfinished)
        of_tokenizer = {Path(name).relative_to(unfinished).as_posix() for name in written}
        if isinstance(base.model, Classifier) and base.model.labels:
            save_head(base.model, unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        check_shareable(unfinished, of_tokenizer)
        publish(unfinished, out)
    return out


def _check_is_one(lineage: Lineage, stage: int | None) -> None:
    """Refuse to choose a stage if each answers a task of its own."""
    if lineage.config.mode == "per_task" and stage is None and len(lineage.stages) > 1:
        raise PerdureError(
            f"{lineage.path}: mode per_task has one adapter for each task, and they do not make up "
            "one model; choose one with --stage"
        )


def _merged(base: Base, where: str) -> Any:
    """Return the network with its adapter merged into the weights, which are fp32."""
    network = base.network
    if not isinstance(network, PeftModel):
        return network
    try:
        return merge(network)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        kind = PeftType(network.peft_config["default"].peft_type).value
        raise PerdureError(
            f"{where}: a {kind} adapter cannot be merged into the weights ({one_line(error)}); "
            "serve the stage's folder with PEFT"
        ) from error


def _check_written(folder: Path, base: Base, expected: Tensor) -> None:
    """Check that the model gives the same output after it was saved and loaded.

    Raises:
        PerdureError: it does not; the files have been deleted.
    """
    written = load_pretrained(str(folder), base.kind)
    output = sample_output(written, base.tokenizer)
    tolerance = 1e-3 if written.dtype == torch.float32 else 0.1
    if expected.isfinite().all() and not alike(output, expected, tolerance):
        shutil.rmtree(folder)
        raise PerdureError(
            f"export: in {str(written.dtype).removeprefix('torch.')} the model gives other outputs "
            "than the stage; try another --dtype, or serve the stage's folder with PEFT"
        )


def _without_adapter(base: Base) -> Any:
    """Return the network without its fresh adapter."""
    network: Any = base.peft
    model = network.get_base_model() if network.peft_config["default"].is_prompt_learning else None
    model = model or network.unload()
    for mark in ("_hf_peft_config_loaded", "peft_config"):
        vars(model).pop(mark, None)
    return model
