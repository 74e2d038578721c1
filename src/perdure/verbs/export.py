"""`export`: one plain model with everything merged in, which needs neither Perdure nor PEFT."""

import shutil
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel, PeftType
from torch import Tensor

from perdure.config import Dtype
from perdure.errors import PerdureError, nearest
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import as_stored, base_at, is_untouched, stage_entry
from perdure.models.base import AUTO, Base, one_line
from perdure.models.classifier import Classifier
from perdure.models.layout import CARD
from perdure.models.merging import merge
from perdure.models.pins import check_pin
from perdure.models.sample import alike, sample_output
from perdure.models.stage_files import save_head
from perdure.verbs.card import model_card


def export(path: str | Path, out: str | Path, stage: int | None, dtype: str | None) -> Path:
    """`perdure.api.export`: a stage as one plain model."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PerdureError(f"{out}: exists and is not empty; give a new folder")
    if dtype is not None and dtype not in get_args(Dtype):
        raise PerdureError(f"dtype {dtype!r} is not a choice; {nearest(dtype, get_args(Dtype))}")
    lineage = Lineage(path)
    entry = stage_entry(lineage, stage)
    if lineage.config.mode == "per_task" and stage is None and len(lineage.stages) > 1:
        raise PerdureError(
            f"{path}: mode per_task has an adapter for each task, which do not merge into one; "
            "say which with --stage"
        )
    check_pin(lineage.pin)
    lineage.config.quantization = None
    base = base_at(lineage, entry)
    own = (base.network if base.whole else base.peft.get_base_model()).dtype
    if not base.whole:
        base.network.float()
    with as_stored(lineage, entry, base):
        expected = sample_output(base.network, base.tokenizer)
    untouched = is_untouched(lineage, entry, base)
    merged = _without_adapter(base) if untouched else _merged(base, str(path))
    merged = merged.to(getattr(torch, dtype) if dtype else own)
    beside = out.parent / f".{out.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    merged.save_pretrained(beside)
    _check_written(beside, base, expected)
    base.tokenizer.save_pretrained(beside)
    if isinstance(base.model, Classifier) and base.model.labels:
        save_head(base.model, beside)
    card = model_card(base.kind, lineage.pin, entry, "merged", str(out))
    (beside / CARD).write_text(card, encoding="utf-8")
    if out.exists():
        out.rmdir()
    beside.rename(out)
    return out


def _merged(base: Base, where: str) -> Any:
    """The network without its adapter, what it added now in the weights, which are fp32."""
    network = base.network
    if not isinstance(network, PeftModel):
        return network
    try:
        return merge(network)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        kind = PeftType(network.peft_config["default"].peft_type).value
        raise PerdureError(
            f"{where}: a {kind} adapter does not merge into weights ({one_line(error)}); serve the "
            "stage's folder with PEFT"
        ) from error


def _check_written(folder: Path, base: Base, expected: Tensor) -> None:
    """Check that the model that is read back from its files gives the same output.

    Raises:
        PerdureError: it does not; the files are gone then.
    """
    written = AUTO[base.kind].from_pretrained(folder, dtype="auto")
    output = sample_output(written, base.tokenizer)
    tolerance = 1e-3 if written.dtype == torch.float32 else 0.1
    if expected.isfinite().all() and not alike(output, expected, tolerance):
        shutil.rmtree(folder)
        raise PerdureError(
            f"export: read back in {str(written.dtype).removeprefix('torch.')}, the model is not "
            "the stage's any more; try another --dtype, or serve the stage's folder with PEFT"
        )


def _without_adapter(base: Base) -> Any:
    """The network itself, from which its fresh adapter is taken."""
    network: Any = base.peft
    model = network.get_base_model() if network.peft_config["default"].is_prompt_learning else None
    model = model or network.unload()
    for mark in ("_hf_peft_config_loaded", "peft_config"):
        vars(model).pop(mark, None)
    return model
