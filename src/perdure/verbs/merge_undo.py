"""`merge --undo` takes an arrival out of what was merged so far, as a stage of its own."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from perdure.data.rows import answer
from perdure.data.task import Split, Task
from perdure.errors import PerdureError, nearest
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept
from perdure.lineage.sources import describe, reopen
from perdure.merging.checkpoint import Tensors
from perdure.merging.factors import added, read_sum, sums
from perdure.merging.heads import factor_of, head_of
from perdure.merging.model import Checkpoint, Model
from perdure.merging.preflight import check
from perdure.merging.rule import Arrived, Rule
from perdure.merging.rules import make
from perdure.merging.streamed import Job, check_memory, plan
from perdure.models.base import Base
from perdure.models.layout import MERGE_STATE
from perdure.prepare import prepare_adopt
from perdure.say import Say
from perdure.verbs.advance import Adopted, AdoptedWeights, advance
from perdure.verbs.merge import open_model
from perdure.verbs.merge_adapters import adapter_of_sum
from perdure.verbs.merge_arrival import heads_of, merged_weights, with_heads
from perdure.verbs.merged_so_far import SoFar, ratio_of


# What decides an arrival, as its line of the ledger has it, and can be taken back; and its results.
UNDERSTOOD = {
    *("stage", "verb", "parent", "previous", "kind", "folder", "files", "mode", "method", "task"),
    *("versions", "scores", "sampled", "dropped", "checkpoint", "rule", "weight", "history"),
    *("discarded", "place", "rounding", "interference", "search", "trials", "labels", "alone"),
    "vocabulary",
}


@dataclass(frozen=True)
class Removal:
    """An arrival that is taken out of the newest stage.

    Args:
        entry: the ledger's line of the stage into which it was merged.
        position: which arrival it is of those in the state, counted from 0.
        history: the arrivals in the state, with it.
        rule: the rule.
        checkpoint: the checkpoint that had arrived.
        rounding: the norm of what all sums into the state have rounded off, None if it is unknown.
    """

    entry: dict[str, Any]
    position: int
    history: list[Arrived]
    rule: Rule
    checkpoint: Checkpoint
    rounding: float | None

    @property
    def left(self) -> list[Arrived]:
        """The arrivals in the state without it."""
        return [*self.history[: self.position], *self.history[self.position + 1 :]]


def merge_undo(
    path: str | Path,
    number: int,
    name: str | None,
    rank: int | None,
    max_memory: int | None,
    data: str | Path | None,
    say: Say,
) -> dict[str, Any]:
    """Take the arrival of a stage out of the newest one, and return the new stage's ledger line.

    Args:
        path: the lineage.
        number: the stage into which the checkpoint was merged.
        name: the folder or name of the checkpoint; None is where it was when it arrived.
        rank: the rank of the new stage's adapter.
        max_memory: the most memory for weights, in bytes.
        data: the folder with the benchmarks' rows.
        say: called with the plan, each note and each warning.
    """
    with locked(Lineage(path).path):
        lineage = Lineage(path)
        lineage.tidy()
        last = lineage.stages[-1] if lineage.stages else {}
        if last.get("undone") == number:
            say(f"stage {number}: was already taken out, as stage {lineage.head}")
            return last
        removal = _removal(lineage, number, name)
        described = removal.entry["task"]
        task = _task(lineage, described, data, say)
        stage_plan = prepare_adopt(lineage, task, merges=True)
        whole = lineage.config.adapter is None
        if whole and rank is not None:
            raise PerdureError(
                "rank: is that of a merged adapter, and the lineage has whole weights"
            )
        job = _job(lineage, removal, max_memory, say) if whole else None

        def without(base: Base, work: Path) -> AdoptedWeights:
            if job is not None:
                weights = merged_weights(job, work)
            else:
                weights = _adapters(lineage, removal, base, rank, work, say)
            if base.labels is not None:
                removed = head_of(removal.checkpoint.folder)
                factor = factor_of(removal.history[removal.position].weight)
                so_far = SoFar(removal.history)
                heads = heads_of(lineage, so_far).without(removed, factor)
                weights = with_heads(weights, heads, base)
            say(f"note: {exactness(removal, weights.line.get('rounding', 0.0))}")
            return weights

        line = {
            "verb": "merge",
            "method": "merged",
            "undone": number,
            "task": describe(lineage, task, described["id"]),
            **{key: removal.entry[key] for key in ("checkpoint", "rule", "weight")},
        }
        return advance(
            lineage,
            stage_plan,
            [task],
            data=data,
            callbacks=(),
            say=say,
            adopted=Adopted(line=line, weights=without),
        )


def arrivals(lineage: Lineage) -> tuple[list[int | None], list[dict[str, Any]]]:
    """Return what is in the state of the newest stage, which is empty if it was not merged.

    The first value has the number of the stage into which each arrival was merged, in their order.
    It is None for a whole stage that counted as the first checkpoint. The second value has the
    ledger's lines of all stages that have changed the state.
    """
    numbers: list[int | None] = []
    steps: list[dict[str, Any]] = []
    for entry in lineage.stages:
        if entry["verb"] != "merge":
            numbers, steps = [], []
        elif "undone" in entry:
            numbers, steps = [n for n in numbers if n != entry["undone"]], [*steps, entry]
        else:
            before = len(entry["history"]) - 1
            if not steps or entry["rule"] != steps[-1]["rule"] or before != len(numbers):
                numbers, steps = [None] * before, []
            numbers, steps = [*numbers, entry["stage"]], [*steps, entry]
    return numbers, steps


def _removal(lineage: Lineage, number: int, name: str | None) -> Removal:
    """Return what is taken out of the newest stage.

    Raises:
        PerdureError: there is no such arrival in it, the rule cannot do it, or the checkpoint is
            not there as it was.
    """
    entry = _arrival(lineage, number)
    rule_name, values = next(iter(entry["rule"].items()))
    rule = make(rule_name, values)
    last, path = lineage.stages[-1], lineage.path
    if not rule.can_undo:
        raise PerdureError(
            f"{path}: stage {number} was merged by {rule.name}, from whose state no arrival can be "
            f"taken out; {_way_back(lineage, entry)}"
        )
    check_understood(lineage, entry)
    if "after" in last:  # its weights were treated, and those without one would not be
        check_understood(lineage, last)
    numbers, steps = arrivals(lineage)
    if number not in numbers:
        later = next((e for e in lineage.stages if _ends_state(e, entry)), last)
        raise PerdureError(
            f"{path}: stage {number} cannot be taken out, because stage {later['stage']} went on "
            f"from what was merged until then; {_way_back(lineage, later, undo=True)}"
        )
    check_kept(lineage, last)
    known = [step.get("rounding") for step in steps]
    history = [Arrived(a["weight"], a["norm"]) for a in last["history"]]
    position = numbers.index(number)
    removal = Removal(
        entry=entry,
        position=position,
        history=history,
        rule=rule,
        checkpoint=_checkpoint(lineage, entry, name),
        rounding=None if None in known else sum(r for r in known if r is not None),
    )
    rule.check_weights([arrived.weight for arrived in removal.left])
    return removal


def check_understood(lineage: Lineage, entry: dict[str, Any]) -> None:
    """Check that nothing has decided an arrival that taking it out would leave in the sums.

    Raises:
        PerdureError: something has; the line names it.
    """
    other = sorted(entry.keys() - UNDERSTOOD)
    if other:
        raise PerdureError(
            f"{lineage.path}: stage {entry['stage']} was merged with {', '.join(other)}, which "
            f"--undo cannot take out; {_way_back(lineage, entry)}"
        )


def _way_back(lineage: Lineage, entry: dict[str, Any], undo: bool = False) -> str:
    """Return how to come to before a stage; with `undo`, an arrival can be taken out there."""
    parent = entry["parent"]
    before = lineage.stage_entries.get(parent)
    if before is not None and lineage.is_gone(before):
        return (
            f"the weights of stage {parent}, before it, were deleted, so merge the checkpoints "
            "that are to stay into a new lineage"
        )
    then = "where --undo can take it out" if undo else "and later checkpoints can be merged again"
    return f"`perdure revert {lineage.path} --to {parent}` goes back to before it, {then}"


def _ends_state(later: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Return whether a stage did not go on with the state of an earlier arrival."""
    if later["stage"] <= entry["stage"]:
        return False
    return later["verb"] != "merge" or later["rule"] != entry["rule"]


def _arrival(lineage: Lineage, number: int) -> dict[str, Any]:
    """Return the ledger's line of an active arrival.

    Raises:
        PerdureError: there is no such stage, or it is not one.
    """
    path = lineage.path
    merged = [str(e["stage"]) for e in lineage.standing if e["verb"] == "merge"]
    hint = nearest(str(number), merged) if merged else "nothing was merged into any active stage"
    if not number or number not in lineage.stage_entries:
        raise PerdureError(f"{path}: no stage {number} into which something was merged; {hint}")
    entry = lineage.at(number)
    if entry not in lineage.stages:
        raise PerdureError(
            f"{path}: stage {number} is not active, so the newest stage does not have it"
        )
    if "undone" in entry:
        raise PerdureError(
            f"{path}: stage {number} took stage {entry['undone']} out; `perdure revert {path} --to "
            f"{entry['parent']}` goes back to before it"
        )
    taken_out = {e["undone"]: e["stage"] for e in lineage.stages if "undone" in e}
    if number in taken_out:
        raise PerdureError(
            f"{path}: stage {number} was taken out already, by stage {taken_out[number]}; merge "
            "its checkpoint again to bring it back"
        )
    if entry["verb"] != "merge":
        raise PerdureError(
            f"{path}: stage {number} was not made by `perdure merge`, so it has no arrival to take "
            f"out; {hint}"
        )
    return entry


def _checkpoint(lineage: Lineage, entry: dict[str, Any], name: str | None) -> Checkpoint:
    """Open the checkpoint that had arrived, with its weight.

    Raises:
        PerdureError: it is not there, or has other bytes.
    """
    number, place = entry["stage"], entry.get("place")
    again = f"perdure merge {lineage.path} CHECKPOINT --undo {number}"
    if name is None and place is None:
        raise PerdureError(
            f"{lineage.path}: does not say where the checkpoint of stage {number} is, and its "
            f"change is needed to take it out; type `{again}`"
        )
    where: str = name or _where(lineage, place)
    try:
        checkpoint = open_model(where, entry["weight"])
        changed = checkpoint.hashes != entry["checkpoint"]
    except PerdureError as error:
        raise PerdureError(
            f"{where}: the checkpoint of stage {number}, whose change is needed to take it out, "
            f"cannot be read ({error}); put it back, or give its new place: `{again}`"
        ) from error
    if changed:
        raise PerdureError(
            f"{where}: has other bytes than the checkpoint that arrived as stage {number}, so its "
            f"change would not be the one that was merged; put that back, or give its place: "
            f"`{again}`"
        )
    return checkpoint


def _where(lineage: Lineage, place: Any) -> str:
    """Return the folder or the name of a checkpoint from its place in the ledger."""
    return os.path.normpath(lineage.path / place["path"]) if "path" in place else place["hub"]


def _task(lineage: Lineage, described: dict[str, Any], data: str | Path | None, say: Say) -> Task:
    """Return the task of the arrival with its test rows, None if they are gone."""
    task = reopen(lineage, described, data, say)
    if task is not None:
        # The ledger has the answers of few train rows as options, also where answers are open.
        options, rows = task.options, task.test.rows if task.test else ()
        is_open = options is not None and any(answer(row).strip() not in options for row in rows)
        return replace(task, options=None) if is_open else task
    options = tuple(described["options"]) if described["options"] else None
    return Task(described["name"], Split(()), metric=described["metric"], options=options)


def _job(lineage: Lineage, removal: Removal, max_memory: int | None, say: Say) -> Job:
    """Return how the checkpoint is taken out of whole weights.

    Raises:
        PerdureError: it does not fit the base any more, or the memory is not enough.
    """
    base = Model(lineage.pin["name"], lineage.pin.get("revision"), bare=True)
    aligned = removal.entry.get("vocabulary")
    notes = check(base, [removal.checkpoint], vocabulary="same" if aligned is None else "base")
    alignment = removal.checkpoint.alignment
    if aligned != (None if alignment is None else alignment.described()):
        raise PerdureError(
            f"{removal.checkpoint.name}: its tokenizer is not the one with which it arrived as "
            f"stage {removal.entry['stage']}, so its rows would be those of other tokens; put its "
            "tokenizer files back"
        )
    state = lineage.file(lineage.stages[-1], MERGE_STATE)
    assert state is not None
    job = Job(
        base,
        [removal.checkpoint],
        removal.rule,
        dtype=torch.float32,
        history=removal.history,
        state=Tensors([state]),
        removes=removal.position,
    )
    merge_plan = plan(job, keeps_state=bool(removal.left))
    check_memory(merge_plan, job, max_memory)
    for line in [*notes, merge_plan.line()]:
        say(line)
    return job


def _adapters(
    lineage: Lineage, removal: Removal, base: Base, rank: int | None, work: Path, say: Say
) -> AdoptedWeights:
    """Take a LoRA adapter out of the sum in the newest stage's state."""
    if not removal.left:
        return adapter_of_sum({}, [], removal.rule, base, rank, work, say)
    state = lineage.file(lineage.stages[-1], MERGE_STATE)
    assert state is not None
    before = removal.rule.coefficients(removal.history)
    others = [*before[: removal.position], *before[removal.position + 1 :]]
    ratio = ratio_of(others, removal.rule.coefficients(removal.left))
    total = read_sum(state, ratio)
    with removal.checkpoint.open():
        change = sums([removal.checkpoint.part], [-ratio * before[removal.position]])
    for module, factors in change.items():
        total[module] = added(total.get(module), factors, removal.checkpoint.name)
    return adapter_of_sum(total, removal.left, removal.rule, base, rank, work, say)


def exactness(removal: Removal, rounding: float) -> str:
    """Return the line that says how exactly an arrival was taken out.

    Args:
        removal: the arrival.
        rounding: the norm of what taking it out has rounded off.
    """
    number, kind = removal.entry["stage"], str(removal.rule.dtype).removeprefix("torch.float")
    if not removal.left:
        return f"stage {number} was the only arrival, so the model is exactly the base again"
    if removal.rounding is None:
        return f"stage {number} is taken out up to the rounding of its sums in fp{kind}"
    total = removal.rounding + rounding
    if total == 0:
        return (
            f"stage {number} is taken out exactly: none of the sums was rounded, so every bit is "
            "as if it had never arrived"
        )
    norm = removal.history[removal.position].norm
    share = f", {total / norm:.1e} of the norm of its change" if norm else ""
    could_be_exact = removal.checkpoint.whole is not None and not removal.rule.exact
    hint = (
        "; with rule.exact=true, sums of bf16 or fp16 weights have none" if could_be_exact else ""
    )
    return (
        f"stage {number} is taken out up to the rounding of its sums in fp{kind}: together at most "
        f"{total:.1e}{share}{hint}"
    )
