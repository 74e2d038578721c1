"""`merge` folds checkpoints into one model, or one more checkpoint into a lineage."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from perdure.config import Dtype, Vocabulary
from perdure.data.task import Split
from perdure.disk import check_folder, check_new, fresh_folder, remove
from perdure.errors import PerdureError, nearest
from perdure.lineage.files import dump, locked
from perdure.lineage.lineage import Lineage, lineage_near
from perdure.lineage.loading import check_kept, stage_folder
from perdure.merging.after import make as make_treatments
from perdure.merging.factors import (
    check_only_factors,
    compressed,
    norms_and_cosines,
    scaled,
    settings_of,
    sums,
)
from perdure.merging.heads import Heads, check_weight, factor_of, head_of
from perdure.merging.model import Checkpoint, Model, hashing, open_checkpoint
from perdure.merging.preflight import check, check_statistics
from perdure.merging.presets import Preset, independence, lines_about, preset
from perdure.merging.rule import Arrived, Rule
from perdure.merging.rules import make
from perdure.merging.rules.frank_wolfe import Trial
from perdure.merging.statistics import Statistics
from perdure.merging.streamed import MODEL, Job, check_memory, merge_into, plan
from perdure.merging.survey import Survey, survey
from perdure.merging.treatment import Treatment, values_of
from perdure.merging.union import Union, unite
from perdure.merging.write import copy_beside, write_card
from perdure.models.as_is import base_of_adapter
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from perdure.say import Say
from perdure.verbs.card import encoder_code
from perdure.verbs.learned_weights import Asked, check_rows, learned
from perdure.writing import publish, writing


DEFAULT_RULE = "average"
After = Sequence[str] | Mapping[str, Mapping[str, Any]] | None  # treatments, as users give them


def merge_many(
    names: Sequence[str],
    into: str | Path,
    base: str | None,
    rule_name: str,
    values: dict[str, Any],
    weights: Sequence[float] | None,
    statistics: Sequence[str | Path] | None,
    rows: Split | None,
    rank: int | None,
    full: bool,
    dtype: str | None,
    max_memory: int | None,
    after: After,
    preset_name: str | None,
    vocabulary: Vocabulary,
    say: Say,
) -> dict[str, Any]:
    """Merge checkpoints into a new folder and describe it. See `perdure.api.merge`."""
    out = Path(into)
    check_new(out)
    treatments = make_treatments(after)
    recipe: Preset | None = None
    if preset_name is not None:
        named = None if rule_name == DEFAULT_RULE else rule_name
        recipe = preset(preset_name, len(names), named, values, weighted=weights is not None)
        rule_name, weights = recipe.rule, recipe.weights
    rule, checkpoints = open_rule_and_checkpoints(names, rule_name, values, weights, statistics)
    if not checkpoints:
        raise PerdureError("give the checkpoints to merge")
    check_rows(rule, [checkpoint.weight for checkpoint in checkpoints], rows)
    only_adapters = all(c.adapter is not None for c in checkpoints) and not (full or recipe)
    not_low = next((t.name for t in treatments if not t.scales), None)
    not_low = not_low if rule.linear else rule.name
    as_adapter = only_adapters and not_low is None
    if only_adapters and not_low is not None:
        say(
            f"note: {not_low} does more than to add task vectors, so its result has no low rank: "
            "a whole model is written"
        )
    if rank is not None and not as_adapter:
        raise PerdureError(
            "rank: is that of a merged adapter, and here a whole model is written; leave it out"
        )
    if rank is not None and rank < 1:
        raise PerdureError(f"rank: must be at least 1, got {rank}")
    if as_adapter:
        return _merge_to_adapter(
            *(rule, checkpoints, treatments, rows, base, out, rank, dtype, max_memory, vocabulary),
            say,
        )
    return _merge_to_model(
        *(rule, checkpoints, treatments, rows, recipe, base, out, dtype, max_memory, vocabulary),
        say,
    )


def check_vocabulary(vocabulary: str) -> None:
    """Check the name of what is done with other vocabularies.

    Raises:
        PerdureError: there is none of that name.
    """
    if vocabulary not in get_args(Vocabulary):
        hint = nearest(vocabulary, get_args(Vocabulary))
        raise PerdureError(f"vocabulary {vocabulary!r} is not a choice; {hint}")


def lineage_and_checkpoint(names: Sequence[str]) -> tuple[str, str]:
    """Return the lineage and the checkpoint that arrives in it.

    Raises:
        PerdureError: they are not given; the line says how.
    """
    if len(names) == 2 and is_lineage(names[0]):
        return names[0], names[1]
    if names and is_lineage(names[0]):
        raise PerdureError(
            f"{names[0]}: is a lineage, in which one checkpoint arrives at a time; give one, or "
            "--into FOLDER to merge all into a new model"
        )
    first = f"{names[0]}: is no lineage, in which a checkpoint could arrive; " if names[1:] else ""
    if names[1:] and (near := _lineage_meant(names[0])):
        raise PerdureError(f"{first}did you mean {near}?")
    raise PerdureError(
        f"{first}give --into FOLDER for the merged model, or a lineage and a checkpoint that "
        "arrives in it"
    )


def lineage_and_moved(names: Sequence[str]) -> tuple[str, str | None]:
    """Return the lineage from which an arrival is taken out, and where its checkpoint is now.

    Raises:
        PerdureError: the first name is no lineage, or there are more than two.
    """
    if not names or not is_lineage(names[0]) or len(names) > 2:
        if names and (near := _lineage_meant(names[0])):
            raise PerdureError(f"undo: {names[0]} is no lineage; did you mean {near}?")
        raise PerdureError(
            "undo: takes an arrival out of a lineage; give the lineage, and if its checkpoint is "
            "elsewhere than it was, the checkpoint"
        )
    return names[0], names[1] if names[1:] else None


def _lineage_meant(name: str) -> Path | None:
    """Return the lineage of a similar name, if there is nothing of this name."""
    return None if Path(name).exists() else lineage_near(Path(name))


def is_lineage(name: str) -> bool:
    """Return whether a name is that of a lineage's folder."""
    return (Path(name) / "lineage.yaml").is_file()


def open_model(name: str, weight: float | None = None) -> Checkpoint:
    """Open a checkpoint; that of a lineage is its newest stage.

    Raises:
        PerdureError: there is no such checkpoint, or the lineage has no stages.
    """
    if not is_lineage(name):
        folder = stage_folder(name)
        place = None if folder == Path(name) else Path(name)
        return replace(open_checkpoint(str(folder), weight), name=name, place=place)
    lineage = Lineage(name)
    if not lineage.stages:
        raise PerdureError(f"{name}: a lineage without stages, which is only its base")
    entry = lineage.stages[-1]
    check_kept(lineage, entry)
    lineage.check_model(entry)
    checkpoint = open_checkpoint(str(lineage.loadable(entry)), weight)
    return replace(checkpoint, name=name, pin=lineage.pin, place=lineage.folder(entry))


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
    statistics: Sequence[str | Path] | None,
) -> tuple[Rule, list[Checkpoint]]:
    """Return the rule, and the checkpoints with their weights and statistics."""
    rule = make(rule_name, values)
    if weights is not None and len(weights) != len(names):
        raise PerdureError(
            f"weights: {len(weights)} for {len(names)} checkpoints; give one for each, in order"
        )
    all_weights = list(weights) if weights is not None else [None] * len(names)
    for weight in all_weights:
        if weight is not None and not abs(weight) < float("inf"):
            raise PerdureError(f"weights: must be finite numbers, got {weight}")
    rule.check_weights(all_weights)
    folders = list(statistics or ())
    if folders and rule.needs is None:
        raise PerdureError(f"{rule.name}: needs no statistics; leave --statistics out")
    if folders and len(folders) != len(names):
        raise PerdureError(
            f"statistics: {len(folders)} for {len(names)} checkpoints; give one for each, in order"
        )
    measured = [Statistics(Path(folder)) for folder in folders] or [None] * len(names)
    checkpoints = [
        replace(open_model(name, weight), statistics=one)
        for name, weight, one in zip(names, all_weights, measured, strict=True)
    ]
    for checkpoint in checkpoints:
        check_weight(checkpoint.folder, checkpoint.weight, checkpoint.name)
    return rule, checkpoints


def with_learned_weights(
    job: Job, asked: Asked | None, max_memory: int | None, say: Say
) -> tuple[Job, dict[str, Any]]:
    """Return a job whose checkpoints have the weights that its rule learns on rows.

    Beside it are the `coefficients` of the checkpoints in the merged model, of which the base has
    the rest to 1, and the `searches`, the steps that led to each weight; nothing if the rule
    learns none.
    """
    if not job.rule.learns:
        return job, {}
    searches: list[list[Trial]] = [[] for _ in job.checkpoints]
    if asked is not None:
        checkpoints, searches = learned(job, asked, max_memory, say)
        job = replace(job, checkpoints=checkpoints)
    return job, {
        "coefficients": job.rule.coefficients(job.arrived),
        "searches": [[trial._asdict() for trial in trials] for trials in searches],
    }


def _asked(rows: Split | None, checkpoints: Sequence[Checkpoint]) -> Asked | None:
    """Return how rows are asked: an encoder's among the labels of the heads that have its label.

    A label that several checkpoints have has, until their weights are learned, the mean row.
    """
    if rows is None:
        return None
    groups = [head_of(checkpoint.folder).keys() for checkpoint in checkpoints]
    return Asked(rows, head=_heads(checkpoints).rows, groups=groups)


def _heads(checkpoints: Sequence[Checkpoint]) -> Heads:
    """Return the merged heads of encoders."""
    heads = Heads()
    for checkpoint in checkpoints:
        heads = heads.arrive(head_of(checkpoint.folder), factor_of(checkpoint.weight))
    return heads


def check_treatments(after: Sequence[Treatment], base: Model) -> None:
    """Check that the merged weights of a base can be treated.

    Raises:
        PerdureError: they cannot.
    """
    for treatment in after:
        treatment.check(list(base.places()))


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in get_args(Dtype):
        raise PerdureError(f"dtype {name!r} is not a choice; {nearest(name, get_args(Dtype))}")
    return getattr(torch, name)


def _base_name(base: str | None, checkpoints: Sequence[Checkpoint]) -> tuple[str, str | None]:
    """Return the base, by default the one that a checkpoint names, and its revision.

    An adapter or a pack names its base, and so does the lineage of a checkpoint.

    Raises:
        PerdureError: there is none, or two lineages began with different ones.
    """
    if base is not None:
        return base, None
    packed = next((c.pack for c in checkpoints if c.pack is not None), None)
    first = next((c for c in checkpoints if c.adapter is not None), None)
    if first is None and packed is not None:
        return packed.base_name, packed.base_revision
    if first is not None:
        return base_of_adapter(str(first.folder))
    pins = [(c.name, c.pin) for c in checkpoints if c.pin is not None]
    if not pins:
        raise PerdureError(
            "base: give the model from which the checkpoints were trained, as --base BASE"
        )
    name, pin = pins[0]
    for other_name, other in pins[1:]:
        if other["files"] != pin["files"]:
            raise PerdureError(
                f"base: {name} began with {pin['name']}, and {other_name} with {other['name']}, "
                "which has other files; give checkpoints of one base, or the one to merge into as "
                "--base BASE"
            )
    return pin["name"], pin.get("revision")


def _merge_to_model(
    rule: Rule,
    checkpoints: list[Checkpoint],
    after: tuple[Treatment, ...],
    rows: Split | None,
    recipe: Preset | None,
    base_name: str | None,
    out: Path,
    dtype_name: str | None,
    max_memory: int | None,
    vocabulary: Vocabulary,
    say: Say,
) -> dict[str, Any]:
    """Merge checkpoints to a whole model."""
    dtype = _dtype(dtype_name)
    base = Model(*_base_name(base_name, checkpoints), bare=any(c.has_head for c in checkpoints))
    speaks = checkpoints[recipe.speaks] if recipe else None
    notes = check(base, checkpoints, speaks=speaks, vocabulary=vocabulary)
    union = unite(base, checkpoints) if vocabulary == "union" else None
    if union is not None:
        _check_union(rows, recipe)
        base = union.base
        notes.append(union.line())
    check_statistics(rule, base, checkpoints)
    check_treatments(after, base)
    job = Job(base, checkpoints, rule, dtype=dtype, after=after)
    merge_plan = plan(job)
    check_memory(merge_plan, job, max_memory)
    for line in [*notes, merge_plan.line()]:
        say(line)
    with hashing(base, checkpoints):
        measured = survey(base, checkpoints, rule.dtype)
    for line in measured.warnings([c.name for c in checkpoints], base.name):
        say(f"warning: {line}")
    job = replace(job, survey=measured)
    job, searches = with_learned_weights(job, _asked(rows, checkpoints), max_memory, say)
    checkpoints = job.checkpoints
    of_preset: dict[str, Any] = {}
    if recipe:
        of_preset = {"preset": recipe.name, "independence": independence(base, checkpoints)}
    about = lines_about(of_preset["independence"]) if recipe else []
    for line in about:
        say(line)
    work = _work(out)
    with writing(out), owned(work, out):
        merged = merge_into(job, work / "parts")
        folder = work / "parts" / MODEL
        copy_beside(base, folder, dtype, speaks=speaks)
        if union is not None:
            union.write(folder)
        _publish(
            *(folder, out, base, checkpoints, rule, after),
            adapter=False,
            notes=[_sentence(line) for line in [*about[:1], *_lines_of(checkpoints, union)]],
            speaks=speaks,
        )
    remove(work)
    return {
        "model": str(out),
        "kind": "weights",
        **_described(rule, after, checkpoints, base, measured.norms, measured.cosines),
        **searches,
        **_vocabulary(vocabulary, checkpoints, union),
        **of_preset,
        "plan": asdict(merge_plan),
        **merged,
    }


def _merge_to_adapter(
    rule: Rule,
    checkpoints: list[Checkpoint],
    after: tuple[Treatment, ...],
    rows: Split | None,
    base_name: str | None,
    out: Path,
    rank: int | None,
    dtype_name: str | None,
    max_memory: int | None,
    vocabulary: Vocabulary,
    say: Say,
) -> dict[str, Any]:
    """Merge LoRA adapters to one LoRA adapter."""
    adapters = [checkpoint.part for checkpoint in checkpoints]
    for adapter, checkpoint in zip(adapters, checkpoints, strict=True):
        check_only_factors(adapter, checkpoint.name)
    base = Model(*_base_name(base_name, checkpoints), bare=any(c.has_head for c in checkpoints))
    notes = check(base, checkpoints, vocabulary=vocabulary)
    if vocabulary == "union":
        unite(base, checkpoints)  # adapters have no rows for tokens of their own
    for line in notes:
        say(line)
    check_treatments(after, base)
    with ExitStack() as stack:
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        norms, cosines = norms_and_cosines(adapters)
    job = Job(base, checkpoints, rule, survey=Survey(0.0, norms, cosines))
    job, searches = with_learned_weights(job, _asked(rows, checkpoints), max_memory, say)
    checkpoints = job.checkpoints
    with ExitStack() as stack:
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        history = [Arrived(c.weight, n) for c, n in zip(checkpoints, norms, strict=True)]
        dtype = _dtype(dtype_name) or next(iter(adapters[0].stored.values())).dtype
        total = sums(adapters, rule.coefficients(history))
        treated = scaled(total, after, base.layers)
        merged = compressed(treated, cap=rank, dtype=dtype, scaling=1.0)
        norm = compressed(total, cap=rank, dtype=dtype).norm if after else merged.norm
    work = _work(out)
    with writing(out), owned(work, out):
        folder = work / MODEL
        fresh_folder(folder)
        save_file(merged.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings = settings_of(adapters, merged.rank, base.name)
        (folder / ADAPTER_SETTINGS).write_text(dump(settings), encoding="utf-8")
        _publish(
            *(folder, out, base, checkpoints, rule, after),
            adapter=True,
            notes=[_sentence(line) for line in _lines_of(checkpoints, None)],
        )
    remove(work)
    return {
        "model": str(out),
        "kind": "adapter",
        **_described(rule, after, checkpoints, base, norms, cosines),
        **searches,
        **_vocabulary(vocabulary, checkpoints, None),
        "rank": merged.rank,
        "discarded": merged.discarded,
        "most_discarded": merged.worst,
        **({"treated_norm": merged.norm} if after else {}),
        "norm": norm,
        "scale": 1.0,
    }


def _check_union(rows: Split | None, recipe: Preset | None) -> None:
    """Check that nothing needs the base as its files have it, without the new tokens.

    Raises:
        PerdureError: something does.
    """
    if rows is not None:
        raise PerdureError(
            "rows: weights are learned with the vocabulary of the base; give --vocabulary base, or "
            "a weight for each checkpoint"
        )
    if recipe is not None:
        raise PerdureError(
            f"{recipe.name}: writes the tokenizer of a checkpoint, to which no tokens are added; "
            "give --vocabulary base"
        )


def _lines_of(checkpoints: Sequence[Checkpoint], union: Union | None) -> list[str]:
    """Return what the card says of other vocabularies than the base's."""
    lines = [
        f"rows of `{Path(checkpoint.name).name}` were aligned with those of the base by token: "
        f"{checkpoint.alignment.in_words(none_left_out=union is not None)}"
        for checkpoint in checkpoints
        if checkpoint.alignment is not None and checkpoint.alignment.differs
    ]
    return lines if union is None else [*lines, union.line().removeprefix("note: ")]


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _vocabulary(
    vocabulary: Vocabulary, checkpoints: Sequence[Checkpoint], union: Union | None
) -> dict[str, Any]:
    """Return what the result says of other vocabularies, nothing if they are refused."""
    if vocabulary == "same":
        return {}
    aligned = [
        {"checkpoint": c.name, **c.alignment.described()}
        for c in checkpoints
        if c.alignment is not None and c.alignment.differs
    ]
    added = list(union.tokens) if union is not None else []
    return {"vocabulary": {"kind": vocabulary, "aligned": aligned, "added": added}}


def keywords_of(rule: Rule) -> dict[str, Any]:
    """Return the values of all keywords of a rule, `exact` last."""
    values = asdict(rule)
    exact = values.pop("exact")
    return {**values, "exact": exact}


def _described(
    rule: Rule,
    after: tuple[Treatment, ...],
    checkpoints: Sequence[Checkpoint],
    base: Model,
    norms: Sequence[float],
    cosines: list[list[float]],
) -> dict[str, Any]:
    """Return what the result says of the rule and of what was merged."""
    return {
        "rule": {rule.name: keywords_of(rule)},
        **({"after": values_of(after)} if after else {}),
        "base": base.name,
        "generates": base.kind != "encoder",
        "checkpoints": [
            {
                "checkpoint": checkpoint.name,
                "weight": checkpoint.weight,
                "norm": norm,
                "files": checkpoint.hashes,
                **({"statistics": checkpoint.statistics.sha256} if checkpoint.statistics else {}),
            }
            for checkpoint, norm in zip(checkpoints, norms, strict=True)
        ],
        "cosines": cosines,
    }


def _work(out: Path) -> Path:
    """Return the folder of a merge that is not finished."""
    return out.parent / f".{out.name}.merging"


@contextmanager
def owned(work: Path, out: Path) -> Iterator[None]:
    """Let no other process write into a folder of unfinished work for a block.

    Args:
        work: the folder of unfinished work.
        out: the new folder that is made of it.

    What a mistake of the user's has left is deleted. What a stopped process has left stays, so that
    the same command goes on with it.
    """
    check_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work, "folder"):
        try:
            check_new(out)  # again, because another process may have written it meanwhile
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
    after: tuple[Treatment, ...],
    adapter: bool,
    notes: Sequence[str] = (),
    speaks: Checkpoint | None = None,
) -> None:
    """Write the head of an encoder and the card into a folder, and give the folder its name."""
    heads = _heads(checkpoints)
    if heads.rows:
        heads.write(folder)
    named = {"name": base.name, **({"revision": base.revision} if base.revision else {})}
    write_card(
        folder,
        base=base.name,
        base_hashes=base.hashes,
        checkpoints=checkpoints,
        rule=rule,
        values=keywords_of(rule),
        adapter=adapter,
        after=after,
        notes=notes,
        speaks=speaks,
        labels=list(heads.rows),
        code=encoder_code(named, "adapter" if adapter else "weights") if heads.rows else (),
    )
    publish(folder, out)
