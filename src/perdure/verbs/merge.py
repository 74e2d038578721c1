"""`merge` folds checkpoints into one model, or one more checkpoint into a lineage."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from perdure.config import Dtype
from perdure.disk import check_folder, fresh_folder, remove, usual_modes
from perdure.errors import PerdureError, nearest
from perdure.lineage.files import dump, locked
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept
from perdure.merging.factors import (
    check_only_factors,
    compressed,
    norms_and_cosines,
    settings_of,
    sums,
)
from perdure.merging.model import Checkpoint, Model, hashing, open_checkpoint
from perdure.merging.preflight import check
from perdure.merging.rule import Arrived, Rule
from perdure.merging.rules import make
from perdure.merging.streamed import MODEL, Job, check_memory, merge_into, plan
from perdure.merging.survey import survey
from perdure.merging.write import copy_beside, write_card
from perdure.models.as_is import base_of_adapter
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from perdure.say import Say
from perdure.writing import sync, writing


def merge_many(
    names: Sequence[str],
    into: str | Path,
    base: str | None,
    rule_name: str,
    values: dict[str, Any],
    weights: Sequence[float] | None,
    rank: int | None,
    full: bool,
    dtype: str | None,
    max_memory: int | None,
    say: Say,
) -> dict[str, Any]:
    """Merge checkpoints into a new folder and describe it. See `perdure.api.merge`."""
    out = Path(into)
    rule, checkpoints = open_rule_and_checkpoints(names, rule_name, values, weights)
    if not checkpoints:
        raise PerdureError("give the checkpoints to merge")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PerdureError(f"{out}: exists and is not empty; give a new folder")
    only_adapters = all(c.adapter is not None for c in checkpoints) and not full
    as_adapter = only_adapters and rule.linear
    if only_adapters and not rule.linear:
        say(
            f"note: {rule.name} does more than to add task vectors, so its result has no low rank: "
            "a whole model is written"
        )
    if rank is not None and not as_adapter:
        raise PerdureError(
            "rank: is that of a merged adapter, and here a whole model is written; leave it out"
        )
    if rank is not None and rank < 1:
        raise PerdureError(f"rank: must be at least 1, got {rank}")
    if as_adapter:
        return _merge_to_adapter(rule, checkpoints, base, out, rank, dtype, say)
    return _merge_to_model(rule, checkpoints, base, out, dtype, max_memory, say)


def lineage_and_checkpoint(names: Sequence[str]) -> tuple[str, str]:
    """Return the lineage and the checkpoint that arrives in it.

    Raises:
        PerdureError: they are not given; the line says how.
    """
    if len(names) == 2 and _is_lineage(names[0]):
        return names[0], names[1]
    if names and _is_lineage(names[0]):
        raise PerdureError(
            f"{names[0]}: is a lineage, in which one checkpoint arrives at a time; give one, or "
            "--into FOLDER to merge all into a new model"
        )
    raise PerdureError(
        "give --into FOLDER for the merged model, or a lineage and a checkpoint that arrives in it"
    )


def lineage_and_moved(names: Sequence[str]) -> tuple[str, str | None]:
    """Return the lineage from which an arrival is taken out, and where its checkpoint is now.

    Raises:
        PerdureError: the first name is no lineage, or there are more than two.
    """
    if not names or not _is_lineage(names[0]) or len(names) > 2:
        raise PerdureError(
            "undo: takes an arrival out of a lineage; give the lineage, and if its checkpoint is "
            "elsewhere than it was, the checkpoint"
        )
    return names[0], names[1] if names[1:] else None


def _is_lineage(name: str) -> bool:
    return (Path(name) / "lineage.yaml").is_file()


def open_model(name: str, weight: float | None = None) -> Checkpoint:
    """Open a checkpoint; that of a lineage is its newest stage.

    Raises:
        PerdureError: there is no such checkpoint, or the lineage has no stages.
    """
    if not _is_lineage(name):
        return open_checkpoint(name, weight)
    lineage = Lineage(name)
    if not lineage.stages:
        raise PerdureError(f"{name}: a lineage without stages, which is only its base")
    entry = lineage.stages[-1]
    check_kept(lineage, entry)
    lineage.check_model(entry)
    checkpoint = open_checkpoint(str(lineage.folder(entry)), weight)
    return replace(checkpoint, name=name)


SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZES |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def read_bytes(size: str | int | None) -> int | None:
    """Return a number of bytes that may be written as `2GB` or `512MiB`.

    Raises:
        PerdureError: it is not written so, or is not positive.
    """
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(size).strip())
    unit = (
        SIZES.get(match[2].upper().removesuffix("B") + "B" if match[2] else "") if match else None
    )
    if match is None or unit is None or float(match[1]) <= 0:
        raise PerdureError(f"max_memory {size!r}: give bytes, such as 2GB or 512MiB")
    return int(float(match[1]) * unit)


def open_rule_and_checkpoints(
    names: Sequence[str],
    rule_name: str,
    values: dict[str, Any],
    weights: Sequence[float] | None,
) -> tuple[Rule, list[Checkpoint]]:
    """Return the rule, and the checkpoints with their weights."""
    rule = make(rule_name, values)
    if weights is not None and len(weights) != len(names):
        raise PerdureError(
            f"weights: {len(weights)} for {len(names)} checkpoints; give one for each, in order"
        )
    given = list(weights) if weights is not None else [None] * len(names)
    for weight in given:
        if weight is not None and not abs(weight) < float("inf"):
            raise PerdureError(f"weights: must be finite numbers, got {weight}")
    rule.check_weights(given)
    return rule, [open_model(n, w) for n, w in zip(names, given, strict=True)]


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in get_args(Dtype):
        raise PerdureError(f"dtype {name!r} is not a choice; {nearest(name, get_args(Dtype))}")
    return getattr(torch, name)


def _base_name(base: str | None, checkpoints: Sequence[Checkpoint]) -> tuple[str, str | None]:
    """Return the base, by default the one that the first adapter names, and its revision.

    Raises:
        PerdureError: there is none.
    """
    if base is not None:
        return base, None
    first = next((c for c in checkpoints if c.adapter is not None), None)
    if first is None:
        raise PerdureError(
            "base: give the model from which the checkpoints were trained, as --base BASE"
        )
    return base_of_adapter(str(first.folder))


def _merge_to_model(
    rule: Rule,
    checkpoints: list[Checkpoint],
    base_name: str | None,
    out: Path,
    dtype_name: str | None,
    max_memory: int | None,
    say: Say,
) -> dict[str, Any]:
    """Merge checkpoints to a whole model."""
    dtype = _dtype(dtype_name)
    base = Model(*_base_name(base_name, checkpoints))
    notes = check(base, checkpoints)
    job = Job(base, checkpoints, rule, dtype=dtype)
    made = plan(job)
    check_memory(made, rule, max_memory)
    for line in [*notes, made.line()]:
        say(line)
    with hashing(base, checkpoints):
        measured = survey(base, checkpoints, rule.dtype)
    for line in measured.warnings([c.name for c in checkpoints], base.name):
        say(f"warning: {line}")
    job = Job(base, checkpoints, rule, survey=measured, dtype=dtype)
    work = _work(out)
    with writing(out), _owned(work):
        merged = merge_into(job, work / "parts")
        folder = work / "parts" / MODEL
        copy_beside(base, folder, dtype)
        _publish(folder, out, base, checkpoints, rule, adapter=False)
    remove(work)
    return {
        "model": str(out),
        "kind": "weights",
        **_described(rule, checkpoints, base.name, measured.norms, measured.cosines),
        "plan": asdict(made),
        **merged,
    }


def _merge_to_adapter(
    rule: Rule,
    checkpoints: list[Checkpoint],
    base_name: str | None,
    out: Path,
    rank: int | None,
    dtype_name: str | None,
    say: Say,
) -> dict[str, Any]:
    """Merge LoRA adapters to one LoRA adapter."""
    adapters = [checkpoint.part for checkpoint in checkpoints]
    for adapter, checkpoint in zip(adapters, checkpoints, strict=True):
        check_only_factors(adapter, checkpoint.name)
    base = Model(*_base_name(base_name, checkpoints))
    for line in check(base, checkpoints):
        say(line)
    with ExitStack() as stack:
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        norms, cosines = norms_and_cosines(adapters)
        history = [Arrived(c.weight, n) for c, n in zip(checkpoints, norms, strict=True)]
        dtype = _dtype(dtype_name) or next(iter(adapters[0].stored.values())).dtype
        total = sums(adapters, rule.coefficients(history))
        merged = compressed(total, cap=rank, dtype=dtype, scaling=1.0)
    work = _work(out)
    with writing(out), _owned(work):
        folder = work / MODEL
        fresh_folder(folder)
        save_file(merged.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings = settings_of(adapters, merged.rank, base.name)
        (folder / ADAPTER_SETTINGS).write_text(dump(settings), encoding="utf-8")
        _publish(folder, out, base, checkpoints, rule, adapter=True)
    remove(work)
    return {
        "model": str(out),
        "kind": "adapter",
        **_described(rule, checkpoints, base.name, norms, cosines),
        "rank": merged.rank,
        "discarded": merged.discarded,
        "most_discarded": merged.worst,
        "norm": merged.norm,
        "scale": 1.0,
    }


def keywords_of(rule: Rule) -> dict[str, Any]:
    """Return the values of all keywords of a rule, `exact` last."""
    values = asdict(rule)
    exact = values.pop("exact")
    return {**values, "exact": exact}


def _described(
    rule: Rule,
    checkpoints: Sequence[Checkpoint],
    base: str,
    norms: Sequence[float],
    cosines: list[list[float]],
) -> dict[str, Any]:
    """Return what the result says of the rule and of what was merged."""
    return {
        "rule": {rule.name: keywords_of(rule)},
        "base": base,
        "checkpoints": [
            {
                "checkpoint": checkpoint.name,
                "weight": checkpoint.weight,
                "norm": norm,
                "files": checkpoint.hashes,
            }
            for checkpoint, norm in zip(checkpoints, norms, strict=True)
        ],
        "cosines": cosines,
    }


def _work(out: Path) -> Path:
    """Return the folder of a merge that is not finished."""
    return out.parent / f".{out.name}.merging"


@contextmanager
def _owned(work: Path) -> Iterator[None]:
    """Let no other process merge into a folder for a block.

    What a mistake of the user's has left is deleted. What a stopped process has left stays, so that
    the same command goes on with it.
    """
    check_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        try:
            yield
        except PerdureError:
            remove(work)
            raise


def _publish(
    folder: Path,
    out: Path,
    base: Model,
    checkpoints: list[Checkpoint],
    rule: Rule,
    adapter: bool,
) -> None:
    """Write the card of a complete folder, and give the folder its name."""
    write_card(
        folder,
        base=base.name,
        base_hashes=base.hashes,
        checkpoints=checkpoints,
        rule=rule,
        values=keywords_of(rule),
        adapter=adapter,
    )
    usual_modes(folder)
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    if out.exists():
        out.rmdir()
    folder.rename(out)
    sync(out.parent)
