"""`repair` restores what can be restored of a damaged lineage, and says what cannot."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, one_line
from perdure.lineage.files import hash_folder, locked
from perdure.lineage.history import REPAIR
from perdure.lineage.ledger import read_ledger
from perdure.lineage.lineage import Lineage
from perdure.lineage.mending import mend_ledger, mend_small_files, replace_links, restore_content
from perdure.lineage.names import NEWEST
from perdure.lineage.schema import check_ledger
from perdure.models.hashing import file_hash, hash_again
from perdure.models.layout import ADAPTER_WEIGHTS, CARD
from perdure.say import Say
from perdure.verbs.again import learn_again, open_again, remove_unfinished, sources_of
from perdure.verbs.verify import base_problems, not_in_the_ledger
from perdure.writing import sync


LEDGER = "ledger.jsonl"


def repair(
    path: str | Path, stage: int | None, data: str | Path | None, say: Say
) -> dict[str, Any]:
    """Restore what can be restored. See `perdure.api.repair`."""
    path = Path(path)
    if not (path / LEDGER).is_file() and not (path / NEWEST).is_file():
        raise PerdureError(f"{path}: not a lineage (no {LEDGER} in it); restore it from a copy")
    hash_again()
    with locked(path):
        restored = mend_ledger(path / LEDGER)
        entries = read_ledger(path / LEDGER)
        check_ledger(entries, path / LEDGER)  # before any file is touched that a line names
        restored += replace_links(path, entries)
        restored += mend_small_files(path, entries)
        lineage = Lineage(path, edited=True)
        remove_unfinished(path)
        wanted = [] if stage is None else [lineage.at(stage)]
        restored += _already_there(lineage, wanted)
        damaged_within = _damaged_within(lineage)
        lineage.tidy()
        restored += [
            f"{file}: was damaged and is deleted; the adapter is within that of a later stage"
            for file in damaged_within
            if not file.exists()
        ]
        present = [e for e in lineage.ledger if "folder" in e and not lineage.is_deleted(e)]
        damaged = {entry["folder"] for entry in present if _damaged(lineage, entry)}
        for entry in present:
            restored += _moved_back(lineage, entry)
            for name in _damaged(lineage, entry):
                file = lineage.folder(entry) / name
                if what := restore_content(file, entry["files"][name]):
                    restored.append(f"{file}: {what} restored")
                elif name == ADAPTER_WEIGHTS and lineage.write_contained(entry):
                    restored.append(f"{file}: restored from the adapter of a later stage")
        learned, lost = _learn_what_is_missing(lineage, present, wanted, data, say)
        restored += learned
        restored += _back_to_a_good_stage(lineage) or _forward_again(lineage, damaged)
        lost += [*not_in_the_ledger(lineage), *base_problems(lineage.pin)]
        return {"restored": restored, "lost": lost, "stage": lineage.head}


def _damaged_within(lineage: Lineage) -> list[Path]:
    """Return the damaged files of adapters that later stages contain."""
    contained, name = lineage.contained, ADAPTER_WEIGHTS
    entries = [e for e in lineage.stage_entries.values() if e.get("folder") in contained]
    files = [(lineage.folder(entry) / name, entry["files"][name]) for entry in entries]
    return [file for file, sha256 in files if file.is_file() and file_hash(file) != sha256]


def _damaged(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    """Return the files of a stage that are missing or not as they were written."""
    dropped = lineage.dropped_files(entry)
    return [
        name
        for name in entry["files"]
        if name not in dropped and not lineage.is_intact(entry, name)
    ]


def _already_there(lineage: Lineage, wanted: list[dict[str, Any]]) -> list[str]:
    """Keep the dropped weights of stages if they are there, for example from a copy."""
    done = []
    for entry in wanted:
        names, folder = lineage.dropped_files(entry), lineage.folder(entry)
        files = [folder / name for name in names]
        if names and all(
            file.is_file() and file_hash(file) == entry["files"][name]
            for file, name in zip(files, names, strict=True)
        ):
            _keep(lineage, entry)
            done.append(f"{folder}: {', '.join(names)}: were there, and are kept again")
    return done


def _keep(lineage: Lineage, entry: dict[str, Any]) -> None:
    """Add a line to the ledger that says that the dropped files of a stage are back."""
    head = lineage.head
    lineage.append({"stage": head, "verb": REPAIR, "parent": head, "restored": [entry["folder"]]})


def _learn_what_is_missing(
    lineage: Lineage,
    present: list[dict[str, Any]],
    wanted: list[dict[str, Any]],
    data: str | Path | None,
    say: Say,
) -> tuple[list[str], list[str]]:
    """Learn stages again, oldest first; return what was restored, and what was not.

    A stage that began with the weights or the state of another one needs them, so that dropped ones
    are learned again as well.

    Args:
        lineage: the lineage.
        present: the lines of the ledger with a folder.
        wanted: the lines of the stages whose dropped files are wanted.
        data: the folder with the benchmarks' rows.
        say: called with each line of a training.
    """
    damaged = {e["folder"]: names for e in present if (names := _damaged(lineage, e))}
    wanted_folders = _needed(lineage, wanted, [e for e in present if e["folder"] in damaged])
    restored, lost, lost_folders = [], [], set()
    for entry in present:
        dropped = lineage.dropped_files(entry) if entry["folder"] in wanted_folders else []
        names = [*damaged.get(entry["folder"], ()), *dropped]
        if not names:
            continue
        line = f"{lineage.path / entry['folder']}: {', '.join(names)}"
        try:
            for source in sources_of(lineage, entry):
                if source.entry["folder"] in lost_folders:
                    raise PerdureError(f"{source.words}, from which it was learned, is lost")
            again = open_again(lineage.path, lineage.ledger.index(entry), data)
            learn_again(again, names, data, say)
            if dropped:
                _keep(lineage, entry)
            restored.append(f"{line}: learned again, to the same bytes")
        except PerdureError as error:
            lost_folders.add(entry["folder"])
            lost.append(f"{line}: cannot be restored: {one_line(error)}")
    return restored, lost


def _moved_back(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    """Rename the folder of a stage back if it is gone and another one has exactly its files."""
    folder = lineage.path / entry["folder"]
    if folder.exists():
        return []
    known = {line["folder"] for line in lineage.ledger if "folder" in line}
    within = entry["folder"] in lineage.contained  # its adapter may not have a file
    for other in sorted((lineage.path / "stages").glob("*")):
        is_known = other.relative_to(lineage.path).as_posix() in known
        hashes = {} if is_known else hash_folder(other)
        if within and hashes:
            hashes.setdefault(ADAPTER_WEIGHTS, entry["files"][ADAPTER_WEIGHTS])
        if hashes == entry["files"]:
            other.rename(folder)
            sync(folder.parent)
            return [f"{folder}: renamed back from {other.name}"]
    return []


def _needed(
    lineage: Lineage, asked: Iterable[dict[str, Any]], damaged: Iterable[dict[str, Any]]
) -> set[str]:
    """Return the folders of the stages whose dropped files have to be learned again.

    Args:
        lineage: the lineage.
        asked: the stages that the user asks for.
        damaged: the stages that are learned again because a file of theirs is damaged.
    """
    folders = set()
    waiting = [entry for entry in asked if lineage.is_gone(entry)]
    begun = [source for entry in damaged for source in sources_of(lineage, entry)]
    waiting += [source.entry for source in begun if source.is_dropped(lineage)]
    while waiting:
        entry = waiting.pop()
        if entry["folder"] not in folders:
            folders.add(entry["folder"])
            sources = sources_of(lineage, entry)
            waiting += [source.entry for source in sources if source.is_dropped(lineage)]
    return folders


def _back_to_a_good_stage(lineage: Lineage) -> list[str]:
    """Revert to the last stage that can be gone on from, unless it is the newest."""
    good = 0
    for entry in lineage.stages:
        if any(name != CARD for name in _damaged(lineage, entry)):
            break
        if not lineage.is_gone(entry):
            good = entry["stage"]
    if good == lineage.head:
        return []
    head = lineage.head
    lineage.write_contained(lineage.stage_entries[good])
    lineage.append({"stage": good, "verb": "revert", "parent": head})
    return [
        f"{lineage.path}: went back from stage {head} to stage {good}, from which the next task is "
        f"learned; once the files are restored, `perdure revert {lineage.path} --to {head}`"
    ]


def _forward_again(lineage: Lineage, damaged: set[str]) -> list[str]:
    """Say how to go forward to a stage that was gone back from, and that is whole again now.

    Args:
        lineage: the lineage.
        damaged: the folders of the stages that were damaged before.
    """
    change = lineage.newest_change
    if change["verb"] != "revert" or change["parent"] <= lineage.head:
        return []
    stages = lineage.line(change["parent"])
    if not any(entry["folder"] in damaged for entry in stages) or any(
        lineage.is_gone(stages[-1]) or _damaged(lineage, entry) for entry in stages
    ):
        return []
    forward = f"`perdure revert {lineage.path} --to {change['parent']}` goes forward again"
    return [f"{lineage.path}: stage {lineage.head} is the newest; {forward}"]
