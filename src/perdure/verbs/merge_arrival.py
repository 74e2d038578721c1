"""`merge` into a lineage: one more checkpoint is folded into what was merged so far, as a stage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.config import Vocabulary
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.files import locked, relative
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.merging.after import make as make_treatments
from perdure.merging.checkpoint import Tensors
from perdure.merging.heads import Heads, factor_of, head_of
from perdure.merging.model import Checkpoint, Model, open_checkpoint
from perdure.merging.preflight import check, check_statistics
from perdure.merging.rule import Rule
from perdure.merging.streamed import MODEL, STATE, Job, check_memory, merge_into, plan
from perdure.merging.survey import survey
from perdure.merging.treatment import Treatment, values_of
from perdure.merging.vocabulary import align
from perdure.models.base import Base
from perdure.models.layout import ADAPTER_SETTINGS, HEAD_WEIGHTS, MERGE_STATE
from perdure.parsing import read_json
from perdure.prepare import prepare_adopt
from perdure.say import Say
from perdure.verbs.advance import Adopted, AdoptedWeights, advance
from perdure.verbs.init import check_tokenizer
from perdure.verbs.inputs import check_same_rows
from perdure.verbs.learned_weights import Asked, check_rows
from perdure.verbs.merge import (
    After,
    check_treatments,
    keywords_of,
    open_rule_and_checkpoints,
    with_learned_weights,
)
from perdure.verbs.merge_adapters import check_adapter, check_modules, merged_adapters
from perdure.verbs.merge_search import Search, weights_to_try
from perdure.verbs.merged_so_far import SoFar, first_weight, history_of, so_far_of


# What only some arrivals have in the ledger.
SOMETIMES = ("after", "statistics", "rows", "vocabulary")
OTHERWISE = (
    "--vocabulary base aligns tokens where there are rows to align; or remove these files from the "
    "adapter's folder to use the base's"
)


def merge_arrival(
    path: str | Path,
    name: str,
    task: Task,
    rule_name: str,
    values: dict[str, Any],
    weights: Sequence[float] | None,
    statistics: Sequence[str | Path] | None,
    rows: Split | None,
    rank: int | None,
    max_memory: int | None,
    after: After,
    search: bool,
    data: str | Path | None,
    say: Say,
    old: bool = True,
    full: bool = False,
    noted: Collection[str] = (),
    vocabulary: Vocabulary = "same",
) -> dict[str, Any]:
    """Merge a checkpoint into a lineage and return the stage's ledger line.

    See `perdure.api.merge`; `old` and `full` are those of `advance`, and `noted` are notes that the
    user has already.
    """
    treatments = make_treatments(after)
    rule, [arrival] = open_rule_and_checkpoints([name], rule_name, values, weights, statistics)
    check_rows(rule, [arrival.weight], rows)
    planned = Lineage(path)
    head = head_of(arrival.folder)
    if head:
        task = _with_labels(task, head, arrival.name)
    whole = planned.config.adapter is None
    if not whole:
        check_adapter(planned, arrival, rule, treatments)
        if rows is not None:
            raise PerdureError(
                f"{path}: its stages are LoRA adapters, in which no weights are learned; give "
                "--weight, or merge into a new model with --into"
            )
    elif rank is not None:
        raise PerdureError("rank: is that of a merged adapter, and the lineage has whole weights")
    if rank is not None and rank < 1:
        raise PerdureError(f"rank: must be at least 1, got {rank}")
    stage_plan = prepare_adopt(planned, task, merges=True)
    if stage_plan.info.kind == "encoder" and not head:
        raise PerdureError(
            f"{arrival.name}: has no {HEAD_WEIGHTS}, so that an encoder could answer nothing; give "
            "a stage of a lineage, or a folder that `perdure export` wrote"
        )
    score = _score_alone(arrival, task, planned)
    alignment_notes: list[str] = []
    if vocabulary != "same":
        base_model = Model(planned.pin["name"], planned.pin.get("revision"), bare=True)
        alignment_notes = align(base_model, arrival)
    with locked(planned.path):
        lineage = Lineage(path)
        if lineage.settings != planned.settings:
            raise PerdureError(f"{path}: its settings have just changed; repeat the command")
        lineage.tidy()
        line = {
            "verb": "merge",
            "method": "merged",
            "checkpoint": arrival.hashes,
            "rule": {rule.name: keywords_of(rule)},
            "weight": arrival.weight,
            **({"after": values_of(treatments)} if treatments else {}),
            **({"statistics": arrival.statistics.sha256} if arrival.statistics else {}),
            **({"rows": rows.sha256} if rows else {}),
            **({"vocabulary": arrival.alignment.described()} if arrival.alignment else {}),
        }
        if search:
            gate = lineage.config.gate
            line["search"] = weights_to_try(rule, arrival, gate, lineage.path)
        last = lineage.stages[-1] if lineage.stages else {}
        if _is_done(last, line) and last["task"]["name"] == task.name:
            _check_same_rank(lineage, last, rank)
            check_same_rows(lineage, last, task, "merge")
            say(f"{task.name}: already merged, as stage {lineage.head}")
            return last
        so_far = so_far_of(lineage, rule, line["rule"])
        rule.check_weights([*so_far.weights(rule), arrival.weight])
        if whole:
            job = _job(lineage, rule, arrival, treatments, so_far, max_memory, vocabulary, say)
            asked = None if rows is None else _asked(rows, lineage, so_far, task, head)
            job, searches = with_learned_weights(job, asked, max_memory, say)
        else:
            base = stage_plan.loader.at(lineage, last or None)
            check_modules(lineage, arrival, base)
            if vocabulary == "same":
                check_tokenizer(arrival.folder, base.tokenizer, otherwise=OTHERWISE)
        if arrival.weight == 0:
            say(f"warning: weight 0: nothing of {arrival.name} is merged into the stage")
        for note in [*so_far.notes, *stage_plan.notes, *alignment_notes]:
            if note not in noted:
                say(note)

        def merged(weight: float | None, base: Base, work: Path, say: Say) -> AdoptedWeights:
            if whole:
                weighted = replace(job.checkpoints[-1], weight=weight)
                checkpoints = [*job.checkpoints[:-1], weighted]
                weighted_job = replace(job, checkpoints=checkpoints)
                weights = merged_weights(weighted_job, work)
                learned = searches
                if searches:  # `--search` may take another weight than the one it begins with
                    learned |= {"coefficients": rule.coefficients(weighted_job.arrived)}
            else:
                weighted = replace(arrival, weight=weight)
                weights = merged_adapters(rule, weighted, treatments, so_far, base, rank, work, say)
                learned = {}
            if base.labels is not None:
                heads = heads_of(lineage, so_far).arrive(head, factor_of(weight))
                weights = with_heads(weights, heads, base)
            # After the key of the stage, which does not depend on the place of any folder.
            place = _place(lineage, arrival)
            alone = {} if score is None else {"alone": score}
            return replace(weights, line={**weights.line, **learned, "place": place, **alone})

        def chosen(base: Base, work: Path) -> AdoptedWeights:
            if not search:
                weighted = job.checkpoints[-1] if whole else arrival
                return merged(weighted.weight, base, work, say)
            search_of_weight = Search(
                lineage, stage_plan, line["search"], merged, data=data, say=say
            )
            return search_of_weight.run(base, work)

        return advance(
            lineage,
            stage_plan,
            [task],
            data=data,
            callbacks=(),
            say=say,
            old=old,
            full=full,
            adopted=Adopted(line=line, weights=chosen),
        )


def _is_done(last: dict[str, Any], line: dict[str, Any]) -> bool:
    """Return whether the newest stage is of the same arrival, merged in the same way."""
    searched = "search" in line  # the weight is the one that was found then
    keys = [key for key in (*line, *SOMETIMES) if not (searched and key == "weight")]
    same = all(last.get(key) == line.get(key) for key in keys)
    return same and "undone" not in last and searched == ("search" in last)


def _check_same_rank(lineage: Lineage, last: dict[str, Any], rank: int | None) -> None:
    """Check that a stage that is merged already has the rank that is asked for.

    Raises:
        PerdureError: its adapter has another one.
    """
    if rank is None:
        return
    settings = read_json(lineage.folder(last) / ADAPTER_SETTINGS)
    if settings["r"] != rank:
        raise PerdureError(
            f"{lineage.path}: stage {last['stage']} has merged it at rank {settings['r']}; for "
            f"another rank, `perdure revert {lineage.path} --to {last['parent']}`, and merge again"
        )


def _job(
    lineage: Lineage,
    rule: Rule,
    arrival: Checkpoint,
    after: tuple[Treatment, ...],
    so_far: SoFar,
    max_memory: int | None,
    vocabulary: Vocabulary,
    say: Say,
) -> Job:
    """Check that a checkpoint can be folded into whole weights, and return what is to be done.

    Raises:
        PerdureError: it cannot, or the memory is not enough.
    """
    base = Model(lineage.pin["name"], lineage.pin.get("revision"), bare=True)
    checkpoints = [arrival]
    if so_far.first is not None:
        if rule.needs is not None:
            raise PerdureError(
                f"{lineage.path}: its newest stage was not made by {rule.name} with these "
                "keywords, and there are no statistics of it; begin with a lineage without "
                "stages, or merge into a new model with --into"
            )
        checkpoints.insert(0, open_checkpoint(str(so_far.first), first_weight(rule)))
    if arrival.alignment is not None:  # its notes are told already
        vocabulary = "base"
    notes = check(base, checkpoints, vocabulary=vocabulary)
    check_statistics(rule, base, checkpoints)
    check_treatments(after, base)
    job = Job(
        base,
        checkpoints,
        rule,
        dtype=torch.float32,
        history=so_far.history,
        state=Tensors([so_far.state]) if so_far.state else None,
        after=after,
    )
    merge_plan = plan(job, keeps_state=True)
    check_memory(merge_plan, job, max_memory)
    for line in [*notes, merge_plan.line()]:
        say(line)
    measured = survey(base, checkpoints, rule.dtype)
    names = [checkpoint.name for checkpoint in checkpoints]
    for line in measured.warnings(names, base.name):
        say(f"warning: {line}")
    return replace(job, survey=measured)


def heads_of(lineage: Lineage, so_far: SoFar) -> Heads:
    """Return what was merged of the heads of an encoder before a checkpoint arrives."""
    if not so_far.history and so_far.first is None:
        return Heads()
    newest = lineage.stages[-1]
    rows = head_of(lineage.folder(newest))
    counted = newest.get("labels", {}) if so_far.first is None else dict.fromkeys(rows, 1.0)
    return Heads({label: rows[label] for label in counted}, counted)


def _asked(
    rows: Split, lineage: Lineage, so_far: SoFar, task: Task, head: Mapping[str, Tensor]
) -> Asked:
    """Return how rows are asked: an encoder's among the labels of the tasks that have its label."""
    heads = heads_of(lineage, so_far).arrive(head, factor_of(None))
    learned = [described for entry in lineage.standing for described in learned_by(entry)]
    groups = [described["options"] or () for described in learned]
    return Asked(rows, lineage.config.max_length or None, heads.rows, [*groups, task.options or ()])


def with_heads(weights: AdoptedWeights, heads: Heads, base: Base) -> AdoptedWeights:
    """Return the weights of a stage with the merged head of an encoder beside them."""
    model: Any = base.model
    heads.write(weights.folder, width=model.weight.shape[1])
    return replace(weights, line={**weights.line, "labels": dict(heads.weights)})


def _with_labels(task: Task, head: Collection[str], name: str) -> Task:
    """Return the task of an encoder, which by default chooses among the labels of its head.

    Raises:
        PerdureError: the head lacks one, so that it could never be answered.
    """
    options = task.answers() or tuple(head)
    lacking = [label for label in options if label not in head]
    if lacking:
        raise PerdureError(
            f"{name}: its head has no label {lacking[0]!r} of task {task.name!r}; give rows of the "
            f"task that it has learned; it knows {', '.join(map(repr, head))}"
        )
    return replace(task, options=options)


def _place(lineage: Lineage, checkpoint: Checkpoint) -> dict[str, str]:
    """Return where a checkpoint is, as the ledger stores it: what takes it out needs it again."""
    if Path(checkpoint.name).is_dir():
        return {"path": relative(checkpoint.place or checkpoint.folder, lineage.path)}
    return {"hub": checkpoint.name}


def _score_alone(arrival: Checkpoint, task: Task, into: Lineage) -> float | None:
    """Return the score that a stage of another lineage has on the same test rows, if it has one."""
    folder = (arrival.place or arrival.folder).resolve()
    own = folder.parent.parent  # of stages/0001-name
    if task.test is None or not (own / "lineage.yaml").is_file():
        return None
    theirs = Lineage(own)
    stage = next((e for e in theirs.stages if theirs.folder(e).resolve() == folder), None)
    if (
        stage is None
        or "sampled" in stage
        or theirs.config.scoring.mode != into.config.scoring.mode
    ):
        return None
    for entry in theirs.standing:
        for described in learned_by(entry):
            rows = described.get("test", {}).get("sha256")
            if rows == task.test.sha256 and described["metric"] == task.metric:
                return stage["scores"].get(described["id"])
    return None


def merged_weights(job: Job, work: Path) -> AdoptedWeights:
    """Fold a checkpoint into whole weights, or take it out of them, tensor by tensor."""
    parts, is_left = work / "merging", bool(job.arrived)
    measured = merge_into(job, parts, keep_state=is_left)
    known = {key: measured[key] for key in ("rounding", "interference") if key in measured}
    return AdoptedWeights(
        parts / MODEL,
        line={"history": history_of(job.arrived), **known},
        state=parts / STATE / MERGE_STATE if is_left else None,
    )
