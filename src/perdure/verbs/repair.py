"""`repair` restores what can be restored of a damaged lineage, and says what cannot."""

from pathlib import Path
from typing import Any

from perdure.data.opening import open_split
from perdure.data.task import Split, Task
from perdure.disk import fresh_folder, remove, usual_modes
from perdure.errors import PerdureError, one_line
from perdure.lineage.files import hash_folder, locked
from perdure.lineage.history import learned_by
from perdure.lineage.ledger import read_ledger
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import is_gone
from perdure.lineage.mending import mend_ledger, mend_small_files, replace_links, restore_bit
from perdure.lineage.names import NEWEST, WORK
from perdure.lineage.settings import loaded
from perdure.lineage.sources import describe
from perdure.lineage.work import WorkFolders
from perdure.models.hashing import hash_again
from perdure.models.layout import CARD, WHOLE
from perdure.models.pins import check_pin
from perdure.prepare import prepare
from perdure.say import Say
from perdure.verbs.advance import advance
from perdure.writing import sync


LEDGER = "ledger.jsonl"


def repair(path: str | Path, data: str | Path | None, say: Say) -> dict[str, Any]:
    """Restore what can be restored. See `perdure.api.repair`."""
    path = Path(path)
    if not (path / LEDGER).is_file() and not (path / NEWEST).is_file():
        raise PerdureError(f"{path}: not a lineage (no {LEDGER} in it); restore it from a copy")
    hash_again()
    with locked(path):
        restored = mend_ledger(path / LEDGER)
        restored += replace_links(path, read_ledger(path / LEDGER))
        restored += mend_small_files(path)
        lineage = Lineage(path, edited=True)
        lineage.tidy()
        lost = []
        for number, entry in enumerate(lineage.ledger):
            if "folder" not in entry or lineage.is_deleted(entry):
                continue
            restored += _moved_back(lineage, entry)
            for name in _damaged(lineage, entry):
                if restore_bit(lineage.folder(entry) / name, entry["files"][name]):
                    restored.append(f"{lineage.folder(entry) / name}: a flipped bit restored")
            if damaged := _damaged(lineage, entry):
                names = f"{path / entry['folder']}: {', '.join(damaged)}"
                try:
                    _learn_again(path, number, damaged, data, say)
                    restored.append(f"{names}: learned again, to the same bytes")
                except PerdureError as error:
                    lost.append(f"{names}: cannot be restored: {one_line(error)}")
        restored += _back_to_a_good_stage(lineage)
        return {"restored": restored, "lost": lost, "stage": lineage.head}


def _damaged(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    """Return the files of a stage that are missing or not as they were written."""
    dropped = entry["folder"] in lineage.dropped
    return [
        name
        for name in entry["files"]
        if not (dropped and Path(name).match(WHOLE)) and not lineage.is_intact(entry, name)
    ]


def _moved_back(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    """Rename the folder of a stage back if it is gone and another one has exactly its files."""
    folder = lineage.path / entry["folder"]
    if folder.exists():
        return []
    known = {line["folder"] for line in lineage.ledger if "folder" in line}
    for other in sorted((lineage.path / "stages").glob("*")):
        is_known = other.relative_to(lineage.path).as_posix() in known
        if not is_known and hash_folder(other) == entry["files"]:
            other.rename(folder)
            sync(folder.parent)
            return [f"{folder}: renamed back from {other.name}"]
    return []


class _Earlier(Lineage):
    """A lineage as it was before one of its lines was written, in which nothing is committed."""

    def __init__(self, path: Path, lines: int):
        super().__init__(path, edited=True)
        self.ledger = self.ledger[:lines]
        self.settings = self.settings_at(lines) or self.settings
        self.config = loaded(self.settings, self.pin, self.path)
        self.again = self.path / WORK / "repair"

    def work(self, name: str, key: str) -> WorkFolders:
        fresh_folder(self.again)
        return WorkFolders(self.again / "checkpoints", self.again / "stage")

    def commit(self, built: Path, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        usual_modes(built)

    def tidy(self) -> None:
        """Change nothing."""


def _learn_again(
    path: Path, number: int, damaged: list[str], data: str | Path | None, say: Say
) -> None:
    """Learn the stage of a line of the ledger again, and put the damaged files in their place.

    Args:
        path: the lineage.
        number: the number of the line, from 0.
        damaged: the names of the files.
        data: the folder with the benchmarks' rows.
        say: called with each line of the training.

    Raises:
        PerdureError: something that the stage was learned from is not there any more, or the files
            have other bytes now.
    """
    entry, earlier = Lineage(path, edited=True).ledger[number], _Earlier(path, number)
    if entry["verb"] != "learn":
        raise PerdureError(f"it was made by `{entry['verb']}`, from files that are elsewhere")
    if entry["mode"] == "joint":
        tasks = [line["task"] for line in [*earlier.stages, entry]]
    else:
        tasks = learned_by(entry)
    learned = [_task(earlier, described, data) for described in tasks]
    check_pin(earlier.pin)
    plan = prepare(earlier.config)
    plan.tasks = learned
    own = {task["id"] for task in learned_by(entry)}
    try:
        advance(
            earlier,
            plan,
            learned,
            data=data,
            callbacks=(),
            say=say,
            old=bool(set(entry["scores"]) - own),
        )
        built = earlier.again / "stage"
        files = hash_folder(built)
        other = [name for name in damaged if files.get(name) != entry["files"][name]]
        if other:
            raise PerdureError(f"learned again, {other[0]} has other bytes{_versions(entry)}")
        _put_back(built, path / entry["folder"], damaged)
    finally:
        remove(earlier.again)


def _put_back(built: Path, folder: Path, names: list[str]) -> None:
    """Move files of a stage that was learned again into the stage's folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        sync(built / name)
        (folder / name).parent.mkdir(exist_ok=True)
        (built / name).replace(folder / name)
    sync(folder)


def _versions(entry: dict[str, Any]) -> str:
    """Return which libraries have another version than when a stage was learned, as text."""
    from importlib.metadata import version

    changed = [
        f"{name} {then} is {now} now"
        for name, then in entry.get("versions", {}).items()
        if name != "python" and (now := version(name)) != then
    ]
    return f" ({'; '.join(changed)})" if changed else " on this machine"


def _task(lineage: Lineage, described: dict[str, Any], data: str | Path | None) -> Task:
    """Return the task of a ledger line with the rows that were learned.

    Raises:
        PerdureError: the rows, the metric or the options are not as they were.
    """
    splits: dict[str, Split] = {}
    for split in ("train", "dev", "test"):
        if split in described:
            source = dict(described[split]["source"] or {})
            if not source:
                raise PerdureError(f"its {split} rows were given in Python, and are in no file")
            if "path" in source:
                source["path"] = str(lineage.path / source["path"])
            splits[split] = open_split(source, data)
            if splits[split].sha256 != described[split]["sha256"]:
                raise PerdureError(f"its {split} rows have changed")
    options = tuple(described["options"]) if described["options"] else None
    for declared in (None, options):  # options that were not declared come from the rows
        task = Task(
            described["name"],
            **splits,
            metric=described["metric"],
            options=declared,
            training=described.get("training", {}),
        )
        if describe(lineage, task, described["id"]) == described:
            return task
    raise PerdureError("its rows, metric or options are not as they were")


def _back_to_a_good_stage(lineage: Lineage) -> list[str]:
    """Revert to the last stage that can be gone on from, unless it is the newest."""
    good = 0
    for entry in lineage.stages:
        if any(name != CARD for name in _damaged(lineage, entry)):
            break
        if not is_gone(lineage, entry):
            good = entry["stage"]
    if good == lineage.head:
        return []
    head = lineage.head
    lineage.append({"stage": good, "verb": "revert", "parent": head})
    return [
        f"{lineage.path}: went back from stage {head} to stage {good}, from which the next task is "
        f"learned; once the files are restored, `perdure revert {lineage.path} --to {head}`"
    ]
