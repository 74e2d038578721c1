"""The lineage: a folder with a model's whole history."""

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from perdure.config import Config, deciding_keys
from perdure.disk import check_can_make, check_tree, fresh_folder, remove, usual_modes
from perdure.errors import PerdureError, nearest
from perdure.lineage.contained import contains, copy_with, cut_out
from perdure.lineage.dropped import gone
from perdure.lineage.files import hash_folder, locked, write_text
from perdure.lineage.history import History, learned_by
from perdure.lineage.ledger import append, finish_append, read_ledger
from perdure.lineage.names import (
    NEWEST,
    REFUSED,
    STARTING_ADAPTER,
    TIMINGS,
    WORK,
    check_own_names,
)
from perdure.lineage.records import read_scores, read_verdict
from perdure.lineage.schema import MAKES_A_STAGE, check_ledger
from perdure.lineage.settings import (
    Changes,
    as_typed,
    command,
    differences,
    in_words,
    loaded,
    stored,
    why_fixed,
)
from perdure.lineage.timings import add_timing, read_timings
from perdure.lineage.work import WorkFolders, remove_work, work_folders
from perdure.measure.matrix import ScoreMatrix
from perdure.models.hashing import file_hash
from perdure.models.layout import (
    ADAPTER_WEIGHTS,
    GUARD,
    LM_EVAL,
    MEMORY,
    PREDICTIONS,
    RECORDS,
    SCORES,
    VERDICT,
)
from perdure.parsing import LARGEST_YAML, UnreadableError, parse_yaml, read_whole
from perdure.seeds import digest
from perdure.writing import sync, write_file, writing


FORMAT = 1
# The files of a new lineage before its lineage.yaml, which is written last.
REMAINS = ("lock", "stages", "ledger.jsonl", NEWEST, f".{NEWEST}.new", ".lineage.yaml.new")
LONGEST_COMMAND = 300  # the longest `perdure set` that an error line shows, in characters


def _without_settings(path: Path) -> str:
    return f"{path}: its lineage.yaml is missing; `perdure repair {path}` writes it again"


class Lineage(History):
    """A lineage on disk: `lineage.yaml`, `ledger.jsonl` and `newest.json`, `stages/`, `refused/`,
    `timings.json` and `lock`.

    Stage 0 is the untouched base. A stage exists if and only if it is in the ledger. The settings
    are those of the ledger, too; `lineage.yaml` shows them.

    Args:
        path: the folder.
        edited: whether `lineage.yaml` may show other settings than the ledger has.

    Raises:
        PerdureError: the folder is not a lineage, a file of it is damaged or leads out of it, or
            its `lineage.yaml` was edited.
    """

    def __init__(self, path: str | Path, edited: bool = False):
        self._given, self._from = Path(path), Path.cwd()
        self._checked: set[Path] = set()
        check_own_names(self.path)
        settings = self.path / "lineage.yaml"
        if not settings.is_file():
            if (self.path / "ledger.jsonl").is_file():
                raise PerdureError(_without_settings(self.path))
            raise PerdureError(
                f"{self.path}: not a lineage (no lineage.yaml in it); {self._hint()}"
            )
        try:
            values = parse_yaml(read_whole(settings, LARGEST_YAML))
            file_format = values.pop("format")
            self.written_pin = values.pop("base")
        except (UnreadableError, AttributeError, KeyError, TypeError) as error:
            raise PerdureError(
                f"{settings}: not a lineage's settings; `perdure repair {self.path}` writes it "
                "again"
            ) from error
        if file_format != FORMAT:
            raise PerdureError(
                f"{settings}: format {file_format}, but this Perdure reads format {FORMAT}; "
                "use the release that wrote it"
            )
        self.ledger = read_ledger(self.path / "ledger.jsonl")
        if not self.ledger:
            raise PerdureError(
                f"{self.path / 'ledger.jsonl'}: missing or empty; restore it from a copy"
            )
        check_ledger(self.ledger, self.path / "ledger.jsonl")
        self.written = stored(loaded(values, self.pin, self.path, str(settings)), self.path)
        self.settings: dict[str, Any] = self.settings_at(len(self.ledger)) or self.written
        self.config: Config = loaded(self.settings, self.pin, self.path)
        if not edited:
            self._check_written()

    @property
    def path(self) -> Path:
        """The folder as it was given, also if the working directory has changed since."""
        if self._given.is_absolute() or Path.cwd() == self._from:
            return self._given
        return Path(os.path.relpath(self._from / self._given))

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Config,
        base: dict[str, Any],
        adapter: dict[str, bytes] | None = None,
    ) -> "Lineage":
        """Create a lineage with the untouched base as stage 0.

        Args:
            path: the folder, which must not exist or be empty.
            config: the settings.
            base: the pin of the base.
            adapter: the files of an adapter with which stage 0 begins, by name.

        Raises:
            PerdureError: the folder already has other files.
        """
        path = Path(path)
        cls.check_vacant(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
                is_new = True
            except FileExistsError:  # perhaps another process has just made it
                is_new = False
            with locked(path):
                cls.check_vacant(path)  # again, for the same reason
                with writing(path, unfinished=path if is_new else None):
                    cls._create(path, config, base, adapter)
        return cls(path)

    @staticmethod
    def _create(
        path: Path, config: Config, base: dict[str, Any], adapter: dict[str, bytes] | None
    ) -> None:
        (path / NEWEST).unlink(missing_ok=True)  # first, because it may have the only line
        (path / "ledger.jsonl").unlink(missing_ok=True)
        fresh_folder(path / "stages")
        settings = stored(config, path)
        entry = {"stage": 0, "verb": "init", "parent": None, "base": base, "settings": settings}
        if adapter:
            (path / STARTING_ADAPTER).mkdir()
            for name, content in adapter.items():
                (path / STARTING_ADAPTER / name).write_bytes(content)
                sync(path / STARTING_ADAPTER / name)
            sync(path / STARTING_ADAPTER)
            sync(path / "stages")
            files = hash_folder(path / STARTING_ADAPTER)
            entry |= {"kind": "adapter", "folder": STARTING_ADAPTER, "files": files}
        append(path / "ledger.jsonl", entry)
        write_settings(path, settings, base)

    @staticmethod
    def check_vacant(path: str | Path) -> None:
        """Check that a lineage can be created in a folder.

        Files of an earlier `create` that was stopped do not matter.

        Raises:
            PerdureError: the folder already has other files, or links in place of its own, or it
                cannot be made.
        """
        path = Path(path)
        if not path.exists():
            check_can_make(path)
            return
        check_own_names(path)
        remains = path.is_dir() and {p.name for p in path.iterdir()} <= set(REMAINS)
        if not remains or any(p != path / STARTING_ADAPTER for p in path.glob("stages/*")):
            if (path / "ledger.jsonl").is_file() and not (path / "lineage.yaml").exists():
                raise PerdureError(_without_settings(path))
            raise PerdureError(f"{path}: exists and is not empty; give a new folder")

    def _hint(self) -> str:
        """Return the end of an error line: a lineage with a similar name, or how to make one."""
        near = lineage_near(self.path)
        return f"did you mean {near}?" if near else f"make one with `perdure init {self.path}`"

    def _check_written(self) -> None:
        """Check that `lineage.yaml` shows the settings of the ledger.

        It may show those before the newest line, if the process stopped after it wrote the line.

        Raises:
            PerdureError: it was edited; the line names the `perdure set` that does the same.
        """
        edits = differences(self.settings, self.written)
        if not edits or self.written == self.settings_at(len(self.ledger) - 1):
            return
        fixed = self.why_fixed(edits, self.written)
        old, new = (as_typed(settings, self.path) for settings in (self.settings, self.written))
        edits = differences(old, new)
        undo = command(self.path, old, edits)
        redo = f"type `{command(self.path, new, edits)}` to use the new values"
        if fixed:
            redo = f"{next(iter(fixed))} cannot change any more"
        raise PerdureError(
            f"{self.path / 'lineage.yaml'}: was edited ({in_words(edits)}), but the ledger "
            f"decides; {redo}; `{undo}` restores the file"
        )

    def settings_at(self, count: int) -> dict[str, Any] | None:
        """Return the settings that held after the first `count` lines of the ledger.

        None if the ledger has none, as those of the first releases.
        """
        lines = [e["settings"] for e in self.ledger[:count] if "settings" in e]
        if not lines or not isinstance(lines[-1], dict):
            return None
        # Keys that are newer than the line get their defaults.
        line = max(n for n, e in enumerate(self.ledger[:count], 1) if "settings" in e)
        where = f"{self.path / 'ledger.jsonl'}, line {line}"
        return stored(loaded(lines[-1], self.pin, self.path, where), self.path)

    def config_at(self, entry: dict[str, Any] | None) -> Config:
        """Return the settings with which a stage was made; None means the newest settings.

        Stage 0 was made with the settings of its own line, the first one.
        """
        settings = self.settings_at(self.ledger.index(entry) or 1) if entry else None
        return loaded(settings, self.pin, self.path) if settings else self.config

    def why_fixed(self, changes: Changes, new: dict[str, Any]) -> dict[str, str]:
        """Return the settings among `changes` that cannot change any more, each with the reason."""
        if self.next_stage == 1 and not self.origin:
            return {}
        reasons = {key: why_fixed(key, self.settings, new, len(self.stages)) for key in changes}
        if self.next_stage == 1:  # only the adapter with which the lineage began must not change
            reasons = {key: reason for key, reason in reasons.items() if key[:7] == "adapter"}
        return {key: reason for key, reason in reasons.items() if reason}

    def check_unchanged(self, config: Config, base: dict[str, Any]) -> None:
        """Check that settings and a base's pin are the current ones of the lineage.

        Raises:
            PerdureError: they differ; the line names the keys and what to type.
        """
        elsewhere = "give a new folder with lineage=FOLDER"
        if self._is_another_base(base):
            raise PerdureError(
                f"{self.path}: has another base, {self.pin['name']}; restore it, {elsewhere}, or "
                "if it has moved, give its new place with `perdure rebase`"
            )
        new = stored(config, self.path)
        old, planned = (
            {**settings, "training": deciding_keys(settings["training"])}
            for settings in (self.settings, new)
        )
        changes = differences(old, planned)
        if not changes:
            return
        fixed = self.why_fixed(changes, new)
        changes = differences(as_typed(old, self.path), as_typed(planned, self.path))
        if fixed:
            key, reason = next(iter(fixed.items()))
            raise PerdureError(
                f"{self.path}: has other settings ({in_words(changes, ', not ')}); {key} cannot "
                f"change any more, because {reason}; restore it or {elsewhere}"
            )
        words = self._set(as_typed(new, self.path), changes)
        raise PerdureError(
            f"{self.path}: has other settings ({in_words(changes, ', not ')}); restore them, type "
            f"`{words}` to change them for the next stage, or {elsewhere}"
        )

    def _set(self, new: dict[str, Any], changes: Changes) -> str:
        """Return the command that makes changes; long ones are taken from the YAML of the run."""
        words = command(self.path, new, changes)
        return words if len(words) <= LONGEST_COMMAND else f"perdure set {self.path} --config YAML"

    def _is_another_base(self, base: dict[str, Any]) -> bool:
        """Return whether a pin is of another base; files added to the base do not matter."""
        elsewhere = any(base.get(key) != self.pin.get(key) for key in ("name", "revision"))
        pinned = self.pin.get("files", {}).items()
        return elsewhere or any(base["files"].get(name) != sha for name, sha in pinned)

    def folder(self, entry: dict[str, Any]) -> Path:
        """Return the folder of a stage.

        Raises:
            PerdureError: the folder is, or contains, a symbolic link or a special file.
        """
        folder = self.path / entry["folder"]
        if folder not in self._checked:
            check_tree(folder)
            self._checked.add(folder)
        return folder

    def file(self, entry: dict[str, Any], name: str) -> Path | None:
        """Return the path of a file of a stage, or None if the ledger names no such file.

        Its hash is compared with the ledger first, so that nothing is used that was changed. An
        adapter that only a later stage contains is in a temporary folder.

        Args:
            entry: the ledger's line of the stage.
            name: the name of the file in the stage's folder.

        Raises:
            PerdureError: the file is missing, or not as it was written.
        """
        if name not in entry["files"]:
            return None
        if name in self.dropped_files(entry):
            raise PerdureError(gone(self.path, self, entry))
        path = self.folder(entry) / name
        with suppress(FileNotFoundError):  # another process may have just deleted it
            if path.is_file() and file_hash(path) == entry["files"][name]:
                return path
        if not path.exists() and self._is_contained(entry, name):
            return self.loadable(entry) / name
        raise self._damaged(path)

    def _damaged(self, path: Path) -> PerdureError:
        """Return the error for a file of a stage that is missing or not as it was written."""
        state = "is not as it was written" if path.exists() else "missing"
        return PerdureError(
            f"{path}: {state}; `perdure repair {self.path}` restores what can be restored, and "
            f"`perdure verify {self.path}` lists what is damaged"
        )

    def loadable(self, entry: dict[str, Any]) -> Path:
        """Return the folder from which the model of a stage is loaded.

        It is a temporary one if the adapter is only within that of a later stage.

        Raises:
            PerdureError: the adapter was within one that is damaged.
        """
        folder, name = self.folder(entry), ADAPTER_WEIGHTS
        if not self._is_contained(entry, name) or (folder / name).exists():
            return folder
        content = self._cut_out(entry, name)
        if content is None:
            raise self._damaged(folder / name)
        others = [other for other in entry["files"] if other not in (name, *RECORDS)]
        return copy_with(folder, others, content)

    def write_contained(self, entry: dict[str, Any]) -> bool:
        """Write the file of a stage's adapter into its folder if a later stage contains it.

        Returns:
            Whether one does, and the file was missing or damaged.

        Raises:
            PerdureError: the file cannot be written.
        """
        if ADAPTER_WEIGHTS not in entry.get("files", {}):
            return False
        path = self.folder(entry) / ADAPTER_WEIGHTS
        if path.is_file() and file_hash(path) == entry["files"][ADAPTER_WEIGHTS]:
            return False
        content = self._cut_out(entry, ADAPTER_WEIGHTS)
        if content is not None:
            write_file(path, content)
        return content is not None

    def _is_contained(self, entry: dict[str, Any], name: str) -> bool:
        """Return whether a file of a stage is within the adapter of a later one."""
        return name == ADAPTER_WEIGHTS and bool(self._holders(entry))

    def _holders(self, entry: dict[str, Any]) -> list[str]:
        """Return the folders of the stages that contain the adapter of another one, newest first.

        If neither the other nor one of them has the file of its adapter, another process may have
        learned further stages since the ledger was read, and those of the present ledger follow.
        """
        folder = entry.get("folder", "")
        known = self.contained.get(folder, [])
        if not folder or any((self.path / f / ADAPTER_WEIGHTS).exists() for f in [folder, *known]):
            return known
        now = History()
        now.ledger = read_ledger(self.path / "ledger.jsonl")
        return [*known, *(f for f in now.contained.get(folder, ()) if f not in known)]

    def _cut_out(self, entry: dict[str, Any], name: str) -> bytes | None:
        """Return a file of a stage that a later one contains; None if none does."""
        if not self._is_contained(entry, name):
            return None
        folder, sha256 = self.folder(entry), entry["files"][name]
        tried: list[str] = []
        # Once more, as another process may delete the file of a later stage while it is read.
        while untried := [later for later in self._holders(entry) if later not in tried]:
            for later in untried:
                content = cut_out(self.folder({"folder": later}), folder, sha256)
                if content is not None:
                    return content
            tried += untried
        return None

    def is_deleted(self, entry: dict[str, Any]) -> bool:
        """Return whether a line is of a refused stage whose folder was deleted, as it may be."""
        return entry["verb"] == "refused" and not (self.path / entry["folder"]).exists()

    def is_intact(self, entry: dict[str, Any], name: str) -> bool:
        """Return whether a stage has a file, or a later one contains it, as it was written."""
        try:
            if self._is_contained(entry, name) and not (self.folder(entry) / name).exists():
                return self._cut_out(entry, name) is not None
            return self.file(entry, name) is not None
        except PerdureError:
            return False

    def check_records(self, entries: Iterable[dict[str, Any]]) -> None:
        """Check what the stages of some lines record and a further stage reads.

        Raises:
            PerdureError: a file is missing or not as it was written.
        """
        for entry in entries:
            for name in (MEMORY, SCORES, PREDICTIONS, GUARD, LM_EVAL, VERDICT):
                self.file(entry, name)

    def check_model(self, entry: dict[str, Any]) -> None:
        """Check the files of a stage's model: weights, settings, and a whole model's tokenizer.

        Raises:
            PerdureError: one is missing or not as it was written, or there are other files of a
                whole model than were written.
        """
        for name in entry["files"]:
            if name not in RECORDS:
                self.file(entry, name)
        if entry["kind"] == "weights":
            for path in self.folder(entry).iterdir():
                if path.name not in entry["files"]:
                    raise PerdureError(
                        f"{path}: is not in the ledger, but could be loaded with the stage; move "
                        "it away"
                    )

    def at(self, stage: int) -> dict[str, Any]:
        """Return the line of the ledger that made a stage.

        Raises:
            PerdureError: there is no such stage, or it is stage 0.
        """
        if stage and stage in self.stage_entries:
            return self.stage_entries[stage]
        stages = [str(number) for number in self.stage_entries]
        raise PerdureError(f"{self.path}: no stage {stage}; {nearest(str(stage), stages)}")

    def work(self, name: str, key: str) -> WorkFolders:
        """Return the working folders of the unfinished stage `name` (`work.work_folders`).

        Raises:
            PerdureError: there is a folder in the place of the stage that no stopped run renamed to
                it (`commit`), because such a run leaves its working folders as well.
        """
        place = self.path / "stages" / name
        if place.exists() and not any((self.path / WORK).glob(f"{name}-*")):
            raise PerdureError(
                f"{place}: is in the place of the next stage, and the ledger does not name it; "
                "move it away"
            )
        return work_folders(self.path, self.ledger[0], name, key)

    def commit(self, built: Path, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        """Make the folder `built` the next stage.

        It is synced and renamed before the line is written, which is the commit (`ledger.append`).
        """
        folder = self.path / entry["folder"]
        with writing(folder, unfinished=built):
            usual_modes(built)
            for path in [*built.rglob("*"), built]:
                sync(path)
            remove(folder)  # renamed by a run that stopped before it wrote the ledger
            entry = {**entry, "files": hash_folder(built)}
            if dropped := self.to_drop(entry, self.config.mode):
                entry["dropped"] = dropped
            if contained := self._to_contain(built, entry):
                entry["contains"] = contained
            built.rename(folder)
        sync(folder.parent)
        add_timing(self.path / TIMINGS, entry["stage"], timing)
        self.append(entry)
        remove_work(self.path, self.ledger[0])

    def _to_contain(self, built: Path, entry: dict[str, Any]) -> list[str]:
        """Return the folders of the stages whose adapters a new one contains, with its parent's."""
        parent = self.stage_entries.get(entry["parent"], {})
        name = ADAPTER_WEIGHTS
        if entry["verb"] != "learn" or not parent.get("stage") or self.is_gone(parent):
            return []
        if name not in parent["files"] or name not in entry["files"]:
            return []
        holds = contains(built, self.folder(parent), parent["files"][name])
        return [*self.within(parent), parent["folder"]] if holds else []

    def refuse(self, built: Path, entry: dict[str, Any], reasons: list[str], key: str) -> None:
        """Keep a stage that the gate refused aside, and add a line to the ledger that says so.

        The line's `stage` is the newest one, which stays the newest.

        Args:
            built: the folder of the refused stage's files.
            entry: the line of the ledger that the stage would have had.
            reasons: why it was refused.
            key: the hash of everything that the stage depends on.
        """
        folder = f"{REFUSED}/{Path(entry['folder']).name}-{key[:8]}"
        place = self.path / folder
        with writing(place, unfinished=built):
            usual_modes(built)
            for path in [*built.rglob("*"), built]:
                sync(path)
            remove(place)  # of a run that stopped before it wrote the ledger
            files = hash_folder(built)
            place.parent.mkdir(exist_ok=True)
            built.rename(place)
        sync(place.parent)
        line = {
            "stage": self.head,
            "verb": "refused",
            "parent": self.head,
            "folder": folder,
            "files": files,
            "task": entry["task"],
            "method": entry["method"],
            "mode": entry["mode"],
            "scores": entry["scores"],
            **{
                key: entry[key] for key in ("sampled", "undone", "weight", "trials") if key in entry
            },
            "reasons": reasons,
            "key": key,
        }
        self.append(line)
        remove_work(self.path, self.ledger[0])

    def decided_by(self, entry: dict[str, Any], judged_on: dict[str, Any]) -> str:
        """Return the hash of everything that decides a stage and the verdict on it.

        It depends neither on the place of any folder nor on earlier refusals.

        Args:
            entry: the line of the ledger that the stage would have, without results.
            judged_on: what decides the verdict beside the line and the settings.
        """
        deciding = {**self.settings, "training": deciding_keys(self.settings["training"])}
        return digest(entry, deciding, *([judged_on] if judged_on else []))

    def refusal(self, key: str) -> dict[str, Any] | None:
        """Return the ledger's line of a refused stage with this key, None if there is none."""
        lines = (line for line in self.ledger if line["verb"] == "refused")
        return next((line for line in lines if line["key"] == key), None)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line to the ledger, and delete the files that are dropped or contained by it."""
        append(self.path / "ledger.jsonl", entry)
        self.ledger = read_ledger(self.path / "ledger.jsonl")
        self.settings = self.settings_at(len(self.ledger)) or self.settings
        self.tidy()

    def tidy(self) -> None:
        """Bring the files in line with the ledger, if a process stopped after its last line."""
        finish_append(self.path / "ledger.jsonl")
        for file in self.still_to_delete():
            file.unlink()
        self._delete_contained()
        committed = {e["folder"] for e in self.ledger if e["verb"] in MAKES_A_STAGE}
        for work in (self.path / WORK).glob("*"):
            folder = f"stages/{work.name.rpartition('-')[0]}"
            if folder in committed and (self.path / folder).is_dir():
                remove_work(self.path, self.ledger[0])
        if (self.written_pin, self.written) != (self.pin, self.settings):
            write_settings(self.path, self.settings, self.pin)
            self.written_pin, self.written = self.pin, self.settings

    def still_to_delete(self) -> list[Path]:
        """Return the files that the ledger declares as dropped, but that are still there."""
        return [
            file
            for folder, patterns in self.dropped.items()
            for pattern in patterns
            for file in sorted(self.folder({"folder": folder}).glob(pattern))
            if not file.is_dir()  # none of Perdure's
        ]

    def _delete_contained(self) -> None:
        """Delete the files of adapters that can be cut out of a later one, but the newest stage's.

        Nothing is lost if one cannot be deleted.
        """
        newest = self.stage_entries[self.head].get("folder") if self.ledger else None
        for entry in self.stage_entries.values():
            folder = entry.get("folder")
            if folder not in self.contained or folder == newest:
                continue
            file = self.path / folder / ADAPTER_WEIGHTS
            with suppress(OSError, PerdureError):
                file.with_name(f".{ADAPTER_WEIGHTS}.new").unlink(missing_ok=True)
                if file.is_file() and self._cut_out(entry, ADAPTER_WEIGHTS) is not None:
                    file.unlink()

    def timings(self) -> dict[str, Any]:
        """Return the timings of each stage, by its number as text; none if they are damaged."""
        return read_timings(self.path / TIMINGS) or {}

    def scores(self, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the scores that were measured at a stage (see `matrix`)."""
        file = self.file(entry, SCORES)
        if file is None:
            raise PerdureError(f"{self.path}: the ledger has no scores of stage {entry['stage']}")
        return read_scores(file)

    def verdict(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Return the verdict on a stage (`measure.verdict`), None if it has none.

        Raises:
            PerdureError: its file is damaged.
        """
        if "folder" not in entry or self.is_deleted(entry):
            return None
        file = self.file(entry, VERDICT)
        return read_verdict(file) if file else None

    def matrix(self) -> ScoreMatrix:
        """Return the score matrix R of the active stages; cells that were not measured are None.

        A stage of the mode `union` has learned several tasks, each a column of its own. The task
        of an arrival that was taken out again has none.

        The scores.json of a stage has `after` (the stage's own row of R), and for the task that it
        learned `before` (the row above) and `base` (row 0).
        """
        stages, standing = self.stages, self.standing
        columns = [
            (task["id"], number)
            for number, entry in enumerate(stages, start=1)
            if entry in standing
            for task in learned_by(entry)
        ]
        tasks = [task for task, _ in columns]
        rows: list[dict[str, Any]] = [{} for _ in range(len(stages) + 1)]
        for i, entry in enumerate(stages, start=1):
            scores = self.scores(entry)
            for row, part in ((0, "base"), (i - 1, "before"), (i, "after")):
                for task, cell in scores[part].items():
                    rows[row].setdefault(task, cell["score"])
        return ScoreMatrix(
            tasks=tuple(tasks),
            learned_at=tuple(number for _, number in columns),
            rows=tuple(tuple(row.get(task) for task in tasks) for row in rows),
            numbers=tuple(entry["stage"] for entry in stages),
        )

    def sampled_cells(self) -> frozenset[tuple[int, str]]:
        """Return the (row, task) of the cells of R that are estimated from a sample of the rows."""
        return frozenset(
            (row, task)
            for row, entry in enumerate(self.stages, start=1)
            for task in self.sampled(entry)
        )

    def sampled(self, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the cells of a stage that are estimated from a sample of the test rows, by task.

        Each has `rows`, `of` and `interval`.
        """
        if "sampled" not in entry or self.is_deleted(entry):
            return {}
        keys, cells = ("rows", "of", "interval"), self.scores(entry)["after"]
        return {
            task: {key: cell[key] for key in keys} for task, cell in cells.items() if "of" in cell
        }


def write_settings(path: Path, settings: dict[str, Any], base: dict[str, Any]) -> None:
    plain = json.loads(json.dumps({**settings, "base": base}, sort_keys=True))  # as in the ledger
    keys = [field.name for field in dataclasses.fields(Config) if field.name in settings]
    shown = {"format": FORMAT, **{key: plain[key] for key in [*keys, "base"]}}
    write_text(path / "lineage.yaml", yaml.safe_dump(shown, sort_keys=False))


def lineage_near(path: Path) -> Path | None:
    """Return the lineage beside a path whose name is most like it, if there is one."""
    names = [file.parent.name for file in path.parent.glob("*/lineage.yaml")]
    close = difflib.get_close_matches(path.name, names, n=1)
    return path.with_name(close[0]) if close else None
