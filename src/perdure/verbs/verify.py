"""`verify` compares a lineage with the hashes in its ledger."""

import time
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.lineage.files import hash_folder, is_locked
from perdure.lineage.ledger import differences_from_newest, line_ends_changed, read_ledger
from perdure.lineage.lineage import Lineage
from perdure.lineage.mending import has_only_other_line_ends
from perdure.lineage.names import REFUSED, REFUSED_STAGE, STAGE, TIMINGS
from perdure.lineage.settings import differences, in_words
from perdure.lineage.timings import read_timings
from perdure.models.hashing import hash_again
from perdure.models.layout import SCORES
from perdure.models.pins import differing, pin


COMMIT = 1.0  # seconds in which a process that commits a stage has written its line
NO_PLACE = "it does not belong there, delete it or move it away"


def verify(path: str | Path) -> list[str]:
    """Return a line for each difference from the ledger. See `perdure.api.verify`.

    This checks the hash chain of the ledger and its newest line, every file of every stage (weights
    may be missing if a later line says that they were dropped), that the scores in
    the ledger are those of the stage, the settings, the base, and that the folder has no other
    stages.
    """
    hash_again()
    lineage = Lineage(path, edited=True)
    problems = _problems(lineage)
    # Another process may have written to the lineage meanwhile, or be about to: the folder of a
    # stage is there a moment before its line.
    if problems and is_locked(lineage.path):
        time.sleep(COMMIT)
    is_older = problems and read_ledger(lineage.path / "ledger.jsonl") != lineage.ledger
    return verify(path) if is_older else problems


def _problems(lineage: Lineage) -> list[str]:
    """Return a line for each difference from a ledger that was read before."""
    problems = differences_from_newest(lineage.path / "ledger.jsonl")
    for entry in lineage.ledger:
        if "folder" in entry and not lineage.is_deleted(entry):
            problems += _stage(lineage, entry) or _scores(lineage, entry)
    problems += not_in_the_ledger(lineage)
    if edits := differences(lineage.settings, lineage.written):
        file = lineage.path / "lineage.yaml"
        problems.append(f"{file}: has other settings than the ledger ({in_words(edits)})")
    if read_timings(lineage.path / TIMINGS) is None:
        problems.append(f"{lineage.path / TIMINGS}: damaged, so the times of stages are unknown")
    if lineage.written_pin != lineage.pin:
        problems.append(f"{lineage.path / 'lineage.yaml'}: names another base than the ledger")
    return problems + base_problems(lineage.pin)


def not_in_the_ledger(lineage: Lineage) -> list[str]:
    """Return a line for each file or folder among the stages that the ledger does not name."""
    entries = {entry["folder"]: entry for entry in lineage.ledger if "folder" in entry}
    problems = []
    for path in sorted(
        p for place in ("stages", REFUSED) for p in (lineage.path / place).glob("*")
    ):
        name = path.relative_to(lineage.path).as_posix()
        if name in entries:
            files = sorted(p for p in path.rglob("*") if p.is_file())
            pinned = {path / file for file in entries[name]["files"]}
            problems += [f"{p}: added; {NO_PLACE}" for p in files if p not in pinned]
        elif path.is_dir() and (STAGE.fullmatch(name) or REFUSED_STAGE.fullmatch(name)):
            problems.append(
                f"{path}: of no stage in the ledger; if a run was stopped, repeat its command, "
                "which makes the stage; otherwise move the folder away"
            )
        else:
            problems.append(f"{path}: {NO_PLACE}")
    return problems


def base_problems(pinned: dict[str, Any]) -> list[str]:
    """Return a line for each file of the base that is missing or not as it was."""
    how = "put it back, or if the base has moved, give its new place with `perdure rebase`"
    try:
        changed = differing(pinned, pin(pinned["name"], pinned.get("revision")))
    except PerdureError as error:
        return [f"{error}; {how}"]
    return [f"base {pinned['name']}: {name} missing or changed; {how}" for name in changed]


def _stage(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    try:
        folder, pinned = lineage.folder(entry), entry["files"]
    except PerdureError as error:  # a link in it
        return [str(error)]
    hashes = hash_folder(folder) if folder.is_dir() else {}
    dropped = lineage.dropped_files(entry)
    missing = [
        name
        for name in pinned
        if name not in hashes and name not in dropped and not lineage.is_intact(entry, name)
    ]
    changed = [name for name in pinned if hashes.get(name, pinned[name]) != pinned[name]]
    return [
        *(f"{folder / name}: missing" for name in missing),
        *(_changed(lineage, folder / name, pinned[name]) for name in changed),
    ]


def _changed(lineage: Lineage, file: Path, sha256: str) -> str:
    if has_only_other_line_ends(file, sha256):
        return f"{file}: changed; {line_ends_changed(lineage.path)}"
    return f"{file}: changed"


def _scores(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    """Compare the scores in the ledger with those in the stage's folder, which is as pinned."""
    if "scores" not in entry:
        return []
    measured = {task: cell["score"] for task, cell in lineage.scores(entry)["after"].items()}
    file = lineage.folder(entry) / SCORES
    return [] if measured == entry["scores"] else [f"{file}: has other scores than the ledger"]
