"""`compact` deletes weights of earlier stages that can be learned again to the same bytes."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, nearest, one_line
from perdure.lineage.dropped import how_to_restore
from perdure.lineage.files import locked
from perdure.lineage.history import COMPACT, matches
from perdure.lineage.lineage import Lineage
from perdure.models.hashing import hash_again
from perdure.models.layout import ADAPTER_WEIGHTS, COMPACTED
from perdure.verbs.again import open_again, sources_of, why_not_the_same
from perdure.verbs.inputs import begun_with_state


_FOR_GOOD = (
    "is gone for good, unless this is put right: {}; its scores, answers and remembered rows stay "
    "and later stages work, but it cannot be tried, exported, pushed or gone back to"
)


@dataclass
class _Stage:
    """A stage that has files to drop.

    Args:
        entry: the ledger's line of the stage.
        files: the files that can be dropped.
        lost: why the stage could not be learned again to the same bytes, None if it could.
    """

    entry: dict[str, Any]
    files: list[Path]
    lost: str | None

    @property
    def number(self) -> int:
        return self.entry["stage"]

    def described(self, reason: str | None) -> dict[str, Any]:
        """Return what the result says of the stage; `reason` says why it is kept or lost."""
        size = sum(file.stat().st_size for file in self.files)
        name = self.entry["task"]["id"]
        return {"stage": self.number, "task": name, "bytes": size, "reason": reason}


def compact(
    path: str | Path, stages: Sequence[int], dry_run: bool, data: str | Path | None
) -> dict[str, Any]:
    """Delete weights of earlier stages. See `perdure.api.compact`."""
    hash_again()
    with nullcontext() if dry_run else locked(Lineage(path).path):
        lineage = Lineage(path)
        for number in stages:
            _check_named(lineage, number, stages)
        finished = _unfinished(lineage)
        if not dry_run:
            lineage.tidy()
        present, lost = _stages_with_files(lineage, data, stages)
        if stages:
            chosen, kept = [stage for stage in present if stage.number in stages], []
        else:
            reasons = {stage.number: _why_kept(lineage, stage) for stage in present}
            chosen = [stage for stage in present if not reasons[stage.number]]
            kept = [s.described(reasons[s.number]) for s in present if reasons[s.number]]
        dropped = finished + [stage.described(stage.lost) for stage in chosen]
        notes = _notes(lineage, chosen, lost)
        if chosen and not dry_run:
            line = {"stage": lineage.head, "verb": COMPACT, "parent": lineage.head}
            folders = sorted(stage.entry["folder"] for stage in chosen)
            size = sum(stage.described(None)["bytes"] for stage in chosen)
            # The line comes first. If the process stops after it, the next one deletes the files.
            lineage.append({**line, "dropped": folders, "bytes": size})
        return {
            "lineage": str(path),
            "dry_run": dry_run,
            "bytes": sum(stage["bytes"] for stage in dropped),
            "dropped": sorted(dropped, key=lambda stage: stage["stage"]),
            "kept": kept,
            "notes": notes,
        }


def _check_named(lineage: Lineage, number: int, named: Sequence[int]) -> None:
    """Check that a stage that the user names may be dropped.

    Raises:
        PerdureError: there is no such stage, the next task begins with its weights, or the adapter
            of one that was not named is within its adapter.
    """
    path = lineage.path
    if number == 0:
        raise PerdureError(f"{path}: stage 0 is the base, of which a lineage has no copy to drop")
    if number not in lineage.stage_entries:
        stages = [str(stage) for stage in lineage.stage_entries if stage]
        hint = nearest(str(number), stages) if stages else "it has no stages yet"
        raise PerdureError(f"{path}: no stage {number}; {hint}")
    if number == lineage.head:
        raise PerdureError(
            f"{path}: stage {number} is the newest, with which the next task begins, so its "
            "weights stay; name earlier stages"
        )
    entry = lineage.stage_entries[number]
    if (later := _holder(lineage, entry["folder"], named)) is not None:
        raise PerdureError(
            f"{path}: the adapter of stage {number} is within that of stage {later} and can only "
            "be dropped with it; name other stages"
        )
    for inside in _held(lineage, entry):
        folder = lineage.stage_entries[inside]["folder"]
        if inside not in named and _holder(lineage, folder, named) is None:
            raise PerdureError(
                f"{path}: the adapter of stage {inside} is within that of stage {number} and would "
                "be lost; name it as well, or keep both"
            )


def _holder(lineage: Lineage, folder: str, without: Sequence[int] = ()) -> int | None:
    """Return the number of the stage out of which the adapter of another one is cut.

    Args:
        lineage: the lineage.
        folder: the folder of the other stage; if it has a file of its adapter, the result is None.
        without: the numbers of stages that are not looked at.
    """

    def has_file(folder: str) -> bool:
        return (lineage.path / folder / ADAPTER_WEIGHTS).is_file()

    if has_file(folder):
        return None
    holders = (later for later in lineage.contained.get(folder, ()) if has_file(later))
    numbers = (lineage.number_of(later) for later in holders)
    return next((number for number in numbers if number not in without), None)


def _held(lineage: Lineage, entry: dict[str, Any]) -> list[int]:
    """Return the numbers of the stages whose adapters are cut out of that of a stage."""
    folders = [f for f in lineage.within(entry) if _holder(lineage, f) == entry["stage"]]
    return [lineage.number_of(folder) for folder in folders]


def _stages(numbers: Sequence[int]) -> str:
    return f"stage{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _unfinished(lineage: Lineage) -> list[dict[str, Any]]:
    """Return what an earlier `compact` has written into the ledger, but not deleted any more."""
    left = lineage.still_to_delete()
    entries = {lineage.path / e["folder"]: e for e in lineage.stage_entries.values() if e["stage"]}
    stages = [
        _Stage(entry, [file for file in left if file.parent == folder], None)
        for folder, entry in entries.items()
    ]
    return [stage.described(None) for stage in stages if stage.files]


def _stages_with_files(
    lineage: Lineage, data: str | Path | None, named: Sequence[int]
) -> tuple[list[_Stage], dict[int, str | None]]:
    """Return the stages that have files to drop, oldest first.

    A stage whose adapter is within that of a later one takes no space, and is none of them, unless
    the user has named both.

    The second value says of every stage why it could not be learned again to the same bytes; None
    means that it could.
    """
    timings, info, left = lineage.timings(), None, lineage.still_to_delete()
    lost: dict[int, str | None] = {}
    stages = []
    for number, entry in enumerate(lineage.ledger):
        stage = entry["stage"]
        if "folder" not in entry or entry is not lineage.stage_entries.get(stage) or not stage:
            continue
        try:
            again = open_again(lineage.path, number, data, info)
            info = again.plan.info
            lost[stage] = why_not_the_same(again, timings.get(str(stage), {}).get("host"))
        except PerdureError as error:
            lost[stage] = one_line(error)
        lost[stage] = lost[stage] or _why_not_from_its_sources(lineage, entry, lost)
        folder = lineage.folder(entry)
        files = [folder / name for name in entry["files"] if matches(name, COMPACTED)]
        files = [file for file in files if file.is_file() and file not in left]
        is_within = _holder(lineage, entry["folder"]) is not None
        if stage in named if is_within else files:
            stages.append(_Stage(entry, files, lost[stage]))
    return stages, lost


def _why_not_from_its_sources(
    lineage: Lineage, entry: dict[str, Any], lost: dict[int, str | None]
) -> str | None:
    """Return why a stage could not begin again with the weights and states that it began with.

    Args:
        lineage: the lineage.
        entry: the ledger's line of the stage.
        lost: why earlier stages could not be learned again.
    """
    for source in sources_of(lineage, entry):
        why = lost[source.number]
        began = f"it began with {source.words}, which"
        if why is not None and source.is_dropped(lineage):
            return f"{began} was dropped and cannot be learned again ({why})"
        if why is not None and not all(lineage.is_intact(source.entry, n) for n in source.files):
            return f"{began} is damaged"
    return None


def _why_kept(lineage: Lineage, stage: _Stage) -> str | None:
    """Return why the weights of a stage are kept unless the user names it, None if they are not."""
    if stage.number == lineage.head:
        return "the newest stage, with which the next task begins"
    if stage.number == _parent_of_head(lineage):
        return "`perdure revert` goes back to it"
    if lineage.config.mode == "per_task" and stage.entry in lineage.stages:
        return "it answers its own task (mode per_task)"
    if stage.number in (states := _states_of_next(lineage, lineage.head)):
        return f"the next task begins with its state of {states[stage.number]}"
    if stage.number in (states := _states_of_next(lineage, _parent_of_head(lineage))):
        return (
            f"after `perdure revert`, the next task begins with its state of {states[stage.number]}"
        )
    if inside := _held(lineage, stage.entry):
        return f"the adapter of {_stages(inside)} is within its own"
    return f"cannot be learned again to the same bytes: {stage.lost}" if stage.lost else None


def _parent_of_head(lineage: Lineage) -> int | None:
    """Return the number of the stage to which `perdure revert` goes back, None at stage 0."""
    return lineage.stage_entries[lineage.head]["parent"]


def _states_of_next(lineage: Lineage, stage: int | None) -> dict[int, str]:
    """Return the stages with whose method state the next task would begin.

    Args:
        lineage: the lineage.
        stage: the stage after which that task is learned; None for none.

    Returns:
        The names of the methods, by the stage's number.
    """
    config = lineage.config
    states = begun_with_state(lineage, stage or 0, config.method, config.mode)
    by_stage: dict[int, list[str]] = {}
    for name, entry in states.items():
        by_stage.setdefault(entry["stage"], []).append(name)
    return {number: " and ".join(names) for number, names in by_stage.items()}


def _notes(lineage: Lineage, chosen: Sequence[_Stage], lost: dict[int, str | None]) -> list[str]:
    """Return what else the user should know of the stages that are dropped, a line each.

    Args:
        lineage: the lineage.
        chosen: the stages that are dropped.
        lost: why each stage could not be learned again to the same bytes.
    """
    notes = []
    for stage in chosen:
        number = stage.number
        if stage.lost:
            notes.append(f"stage {number} {_FOR_GOOD.format(stage.lost)}")
        if states := _states_of_next(lineage, lineage.head).get(number):
            notes.append(
                f"the next task begins without the state of {states}, which stage {number} has"
            )
        if number == _parent_of_head(lineage) and not stage.lost:
            restore = how_to_restore(lineage.path, number, stage.entry["verb"])
            notes.append(f"before `perdure revert` can go back to stage {number}: {restore}")
        if lineage.config.mode == "per_task" and stage.entry in lineage.stages:
            notes.append(f"stage {number} answered its own task (mode per_task), and no other can")
    numbers = {stage.number for stage in chosen}
    for_good = {number for number in numbers if lost[number]}
    for number, entry in sorted(lineage.stage_entries.items()):
        sources = sources_of(lineage, entry) if number else []
        needed = next((source for source in sources if source.number in for_good), None)
        if needed is None or lost[number]:
            continue
        if lineage.is_gone(entry) or number in numbers:
            for_good.add(number)
            reason = f"it can only be learned again from {needed.words}"
            notes.append(f"stage {number} {_FOR_GOOD.format(reason)}")
    return notes
