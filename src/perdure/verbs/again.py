"""Learning a stage of a lineage again, from what it was learned from, to the same bytes.

`repair` does so for files that are damaged or were dropped, and `compact` drops only what can be
learned again.
"""

import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from perdure.data.opening import open_split
from perdure.data.task import Split, Task
from perdure.disk import fresh_folder, remove, usual_modes
from perdure.errors import PerdureError
from perdure.lineage.files import hash_folder
from perdure.lineage.history import REPAIR, History, learned_by, matches
from perdure.lineage.lineage import Lineage
from perdure.lineage.names import WORK
from perdure.lineage.settings import loaded
from perdure.lineage.sources import describe, describe_split, general_rows, source_of
from perdure.lineage.work import WorkFolders
from perdure.measure.custom_metric import is_custom
from perdure.measure.known_metrics import is_known
from perdure.models.base import BaseInfo
from perdure.models.layout import ADAPTER_SETTINGS, CARD, COMPACTED, METHOD_STATE
from perdure.models.pins import check_pin
from perdure.prepare import Plan, prepare
from perdure.say import Say
from perdure.verbs.advance import advance
from perdure.verbs.inputs import begun_with_state
from perdure.writing import sync


class Earlier(Lineage):
    """A lineage as it was before one of its lines was written, in which nothing is committed.

    Two things are the present ones: the place of the base, as `rebase` may have moved it since, and
    which adapters are within those of later stages.
    """

    def __init__(self, path: Path, lines: int):
        super().__init__(path, edited=True)
        self.present_pin, self.contained_now = super().pin, super().contained
        self.ledger = self.ledger[:lines]
        self.base_then = next(e["base"]["name"] for e in reversed(self.ledger) if "base" in e)
        self.settings = self.settings_at(lines) or self.settings
        self.config = loaded(self.settings, self.pin, self.path)
        self.again = self.path / WORK / REPAIR

    @property
    def pin(self) -> dict[str, Any]:
        return getattr(self, "present_pin", None) or super().pin

    @property
    def contained(self) -> dict[str, list[str]]:
        return self.contained_now if hasattr(self, "contained_now") else super().contained

    def work(self, name: str, key: str) -> WorkFolders:
        fresh_folder(self.again)
        return WorkFolders(self.again / "checkpoints", self.again / "stage")

    def commit(self, built: Path, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        usual_modes(built)

    def refuse(self, built: Path, entry: dict[str, Any], reasons: list[str], key: str) -> None:
        raise PerdureError(f"learned again, the gate refuses it: {'; '.join(reasons)}")

    def tidy(self) -> None:
        """Change nothing."""


@dataclass
class Again:
    """What is needed to learn a stage again.

    Args:
        entry: the ledger's line of the stage.
        earlier: the lineage before that line.
        plan: the plan of the settings that held then.
        learned: the tasks of the stage, the new one last.
    """

    entry: dict[str, Any]
    earlier: Earlier
    plan: Plan
    learned: list[Task]


def open_again(
    path: Path, number: int, data: str | Path | None, info: BaseInfo | None = None
) -> Again:
    """Read again what a stage was learned from: its rows, its settings and the base.

    Args:
        path: the lineage.
        number: the number of the stage's line in the ledger, from 0.
        data: the folder with the benchmarks' rows.
        info: the result of `read_base` for the base, if there is one already.

    Raises:
        PerdureError: something of it is not there any more, or is not as it was.
    """
    entry, earlier = Lineage(path, edited=True).ledger[number], Earlier(path, number)
    if entry["verb"] != "learn":
        raise PerdureError(f"it was made by `{entry['verb']}`, from files that are elsewhere")
    if entry["mode"] == "joint":
        tasks = [line["task"] for line in [*earlier.stages, entry]]
    else:
        tasks = learned_by(entry)
    learned = [_task(earlier, described, data) for described in tasks]
    check_pin(earlier.pin)
    plan = prepare(earlier.config, info)
    plan.tasks = learned
    return Again(entry, earlier, plan, learned)


def learn_again(again: Again, wanted: list[str], data: str | Path | None, say: Say) -> None:
    """Learn a stage again, and put some of its files in their place.

    Args:
        again: what it is learned from.
        wanted: the names of the files.
        data: the folder with the benchmarks' rows.
        say: called with each line of the training.

    Raises:
        PerdureError: the stage cannot be learned, or the files have other bytes now.
    """
    entry, earlier = again.entry, again.earlier
    if why := _why_not_alone(entry):
        raise PerdureError(why)
    own = {task["id"] for task in learned_by(entry)}
    try:
        advance(
            earlier,
            again.plan,
            again.learned,
            data=data,
            callbacks=(),
            say=say,
            old=bool(set(entry["scores"]) - own),
            full="sampled" not in entry,
        )
        built = earlier.again / "stage"
        _name_base_as_then(built, earlier)
        files = hash_folder(built)
        other = [name for name in wanted if files.get(name) != entry["files"][name]]
        if other:
            changed = changed_versions(entry)
            why = f" ({'; '.join(changed)})" if changed else " on this machine"
            raise PerdureError(f"learned again, {other[0]} has other bytes{why}")
        _put_back(built, earlier.path / entry["folder"], wanted)
    finally:
        remove_unfinished(earlier.path)


def _name_base_as_then(built: Path, earlier: Earlier) -> None:
    """Write the place of the base that it had then, if `rebase` has moved it since."""
    now, then = earlier.pin["name"], earlier.base_then
    for name in (CARD, ADAPTER_SETTINGS) if now != then else ():
        file = built / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(now, then), encoding="utf-8")


def remove_unfinished(path: Path) -> None:
    """Delete the working folder of `learn_again`, which a stopped process has left."""
    folder = path / WORK / REPAIR
    remove(folder)
    with suppress(OSError):  # it has the checkpoints of a task that was stopped
        folder.parent.rmdir()


def _put_back(built: Path, folder: Path, names: list[str]) -> None:
    """Move files of a stage that was learned again into the stage's folder."""
    folder.mkdir(parents=True, exist_ok=True)  # stages/ may be gone as well
    for name in names:
        if (folder / name).is_dir():
            raise PerdureError(f"{folder / name}: is a folder, where a file belongs; move it away")
        sync(built / name)
        (folder / name).parent.mkdir(exist_ok=True)
        (built / name).replace(folder / name)
    sync(folder)
    sync(folder.parent)


def parent_learned_from(lineage: Lineage, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the line of the stage with whose weights a stage began, None if with stage 0."""
    if entry.get("mode") != "sequential" or not entry["parent"]:
        return None
    return lineage.stage_entries[entry["parent"]]


@dataclass(frozen=True)
class Source:
    """A stage with whose weights or state another one began.

    Args:
        entry: its line of the ledger.
        files: the names of its files with which the other one began.
        words: what it is called in an error line.
    """

    entry: dict[str, Any]
    files: tuple[str, ...]
    words: str

    @property
    def number(self) -> int:
        return self.entry["stage"]

    def is_dropped(self, lineage: Lineage) -> bool:
        """Return whether the files were deleted on purpose."""
        dropped = lineage.dropped_files(self.entry)
        return any(name in dropped for name in self.files)


def sources_of(lineage: Lineage, entry: dict[str, Any]) -> list[Source]:
    """Return the stages with whose weights or method state a stage began; none if with stage 0.

    The state of a method may be that of an older stage than the parent (`stages_with_state`).
    """
    parent = parent_learned_from(lineage, entry)
    if parent is None:
        return []
    weights = tuple(name for name in parent["files"] if matches(name, COMPACTED))
    sources = {parent["stage"]: Source(parent, weights, f"stage {parent['stage']}")}
    if entry["verb"] == "learn":
        then = History()
        then.ledger = lineage.ledger[: lineage.ledger.index(entry)]
        states = begun_with_state(then, parent["stage"], entry["method"], entry["mode"])
        for line in states.values():
            words = f"the state of stage {line['stage']}"
            sources.setdefault(line["stage"], Source(line, (METHOD_STATE,), words))
    return list(sources.values())


def changed_versions(entry: dict[str, Any]) -> list[str]:
    """Return which libraries have another version than when a stage was learned, as text."""
    changed = []
    for name, then in entry.get("versions", {}).items():
        try:
            now = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            now = "not installed"
        if now != then:
            changed.append(f"{name} {then} is {now} now")
    return changed


def why_not_the_same(again: Again, host: str | None) -> str | None:
    """Return why a stage would not certainly be learned again to the same bytes, None if it would.

    Args:
        again: what it is learned from.
        host: the machine on which it was learned, None if it is not known.
    """
    entry, earlier, config = again.entry, again.earlier, again.plan.config
    try:
        earlier.check_records(earlier.stages)  # it rehearses the rows that they remember
        if "general" in entry:
            rows = general_rows(config, again.learned[-1], entry["stage"])
            if describe_split(earlier, rows) != entry["general"]:
                return "its general rows have changed"
    except PerdureError as error:
        return str(error)
    if changed := changed_versions(entry):
        return "; ".join(changed)
    if why := _why_not_alone(entry):
        return why
    if config.threads is None:
        return "its number of threads is not recorded"
    if host != platform.node():
        return f"it was learned on another machine ({host or 'unknown'})"
    if again.plan.arguments(config.training).device.type != "cpu":
        return "training on an accelerator does not give the same bits each time"
    return None


def _why_not_alone(entry: dict[str, Any]) -> str | None:
    """Return why one process cannot learn a stage again to the same bytes, None if it can."""
    count = entry.get("processes", 1)
    return (
        f"it was learned by {count} processes, which add up in another order" if count > 1 else None
    )


def _task(lineage: Lineage, described: dict[str, Any], data: str | Path | None) -> Task:
    """Return the task of a ledger line with the rows that were learned.

    Raises:
        PerdureError: the rows, the metric or the options are not as they were.
    """
    metric = described["metric"]
    if is_custom(metric) and not is_known(metric, described.get("metric_source")):
        raise PerdureError(
            f"its metric {metric} is code that only the ledger names; if you trust it, "
            f"PERDURE_METRICS={metric} in the environment runs it"
        )
    splits: dict[str, Split] = {}
    for split in ("train", "dev", "test"):
        if split in described:
            source = source_of(lineage, described[split])
            if not source:
                raise PerdureError(f"its {split} rows were given in Python, and are in no file")
            splits[split] = open_split(source, data)
            if splits[split].sha256 != described[split]["sha256"]:
                raise PerdureError(f"its {split} rows have changed")
    options = tuple(described["options"]) if described["options"] else None
    for declared in (None, options):  # options that were not declared come from the rows
        task = Task(
            described["name"],
            **splits,
            metric=metric,
            options=declared,
            training=described.get("training", {}),
        )
        if describe(lineage, task, described["id"]) == described:
            return task
    raise PerdureError("its rows, metric or options are not as they were")
