"""The folder that holds a model's whole history."""

import difflib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from engram.config import Config, deciding, load_config
from engram.errors import EngramError, nearest
from engram.lineage.files import dump, hash_folder, locked, sync, write_text
from engram.lineage.history import History, learned_by
from engram.lineage.ledger import append, read_ledger
from engram.measure.matrix import ScoreMatrix
from engram.models.layout import SCORES, WHOLE
from engram.seeds import digest


FORMAT = 1
# Keys that may differ between runs of one lineage, because they do not decide its bytes.
FREE = ("lineage", "data")
# What lies in a new lineage before its engram.yaml, which is written last.
REMAINS = ("lock", "stages", "ledger.jsonl", ".engram.yaml.new")
ADAPTER = "stages/0000-adapter"  # where a lineage began, if it was on an adapter


class Lineage(History):
    """A lineage on disk: `engram.yaml`, `ledger.jsonl`, `stages/`, `timings.json`, `lock`.

    Stage 0 is the untouched base. A stage is in the ledger, or it does not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        settings = self.path / "engram.yaml"
        if not settings.is_file():
            raise EngramError(f"{self.path}: not a lineage (no engram.yaml in it); {self._hint()}")
        try:
            values = yaml.safe_load(settings.read_text(encoding="utf-8"))
            found = values.pop("format")
            self.written_pin = values.pop("base")
        except (yaml.YAMLError, AttributeError, KeyError) as error:
            raise EngramError(
                f"{settings}: not a lineage's settings; restore it from a copy"
            ) from error
        if found != FORMAT:
            raise EngramError(
                f"{settings}: format {found}, this Engram reads format {FORMAT}; "
                "use the release that wrote it"
            )
        self.ledger = read_ledger(self.path / "ledger.jsonl")
        if not self.ledger:
            raise EngramError(
                f"{self.path / 'ledger.jsonl'}: gone or empty; restore it from a copy"
            )
        where = {"base": self.pin["name"], "revision": self.pin.get("revision")}
        self.config: Config = load_config({**values, **where})
        self.config.general.file = moved(self.config.general.file, self.path, Path.cwd())

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Config,
        base: dict[str, Any],
        adapter: dict[str, bytes] | None = None,
    ) -> "Lineage":
        """A new lineage with the untouched base as stage 0, or with an `adapter`'s files on it.

        Raises:
            EngramError: the folder holds something else already.
        """
        path = Path(path)
        cls.check_vacant(path)
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            (path / "ledger.jsonl").unlink(missing_ok=True)
            shutil.rmtree(path / "stages", ignore_errors=True)
            (path / "stages").mkdir()
            settings = settings_digest(config)
            entry = {"stage": 0, "verb": "init", "parent": None, "base": base, "settings": settings}
            if adapter:
                (path / ADAPTER).mkdir()
                for name, content in adapter.items():
                    (path / ADAPTER / name).write_bytes(content)
                    sync(path / ADAPTER / name)
                sync(path / ADAPTER)
                sync(path / "stages")
                files = hash_folder(path / ADAPTER)
                entry |= {"kind": "adapter", "folder": ADAPTER, "files": files}
            append(path / "ledger.jsonl", entry)
            _write_settings(path, config, base)
        return cls(path)

    @staticmethod
    def check_vacant(path: str | Path) -> None:
        """Refuse a folder that holds anything but the remains of a `create` that was stopped.

        Raises:
            EngramError: the folder holds something else already.
        """
        path = Path(path)
        if not path.exists():
            return
        remains = path.is_dir() and {p.name for p in path.iterdir()} <= set(REMAINS)
        if not remains or any(p != path / ADAPTER for p in path.glob("stages/*")):
            raise EngramError(f"{path}: exists and is not empty; give a new folder")

    def _hint(self) -> str:
        beside = self.path.parent.glob("*/engram.yaml")
        found = difflib.get_close_matches(self.path.name, [p.parent.name for p in beside], n=1)
        if found:
            return f"did you mean {self.path.with_name(found[0])}?"
        return f"make one with `engram init {self.path}`"

    def check_unchanged(self, config: Config, base: dict[str, Any]) -> None:
        """Refuse settings that differ from the ones this lineage was made with, naming the keys."""
        mine, theirs = self.config.to_dict(), config.to_dict()
        for settings in (mine, theirs):
            settings["training"] = deciding(settings["training"])
        mine["general"]["file"], theirs["general"]["file"] = (
            moved(c.general.file, Path.cwd(), self.path) for c in (self.config, config)
        )
        changed = [k for k in mine if k not in FREE and k != "base" and mine[k] != theirs[k]]
        if self._moved(base):
            changed.append("base")
        if changed:
            raise EngramError(
                f"{self.path}: made with other settings ({', '.join(changed)} differ); "
                "take them back or give a new folder with lineage=FOLDER"
            )

    def _moved(self, base: dict[str, Any]) -> bool:
        """Whether a pinned base is not this one; files beside those of the base are nothing new."""
        place = any(base.get(key) != self.pin.get(key) for key in ("name", "revision"))
        pinned = self.pin.get("files", {}).items()
        return place or any(base["files"].get(name) != sha for name, sha in pinned)

    def folder(self, entry: dict[str, Any]) -> Path:
        return self.path / entry["folder"]

    def at(self, stage: int) -> dict[str, Any]:
        """The ledger's line that made a stage.

        Raises:
            EngramError: no such stage.
        """
        if stage and stage in self.made:
            return self.made[stage]
        stages = [str(number) for number in self.made]
        raise EngramError(f"{self.path}: no stage {stage}; {nearest(str(stage), stages)}")

    def work(self, name: str, key: str) -> Path:
        """The folder of the unfinished stage `name`; what another unfinished task left there goes.

        `key` is the hash of all that the stage depends on: the same command finds its own
        checkpoints again, a different one starts afresh.
        """
        folder = self.path / ".work" / f"{name}-{key[:16]}"
        for other in (self.path / ".work").glob("*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, built: Path, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        """Make `built` the next stage: sync, rename, then the ledger line, which is the commit."""
        folder = self.path / entry["folder"]
        for path in [*built.rglob("*"), built]:
            sync(path)
        if folder.exists():  # renamed by a run that stopped before its ledger line
            shutil.rmtree(folder)
        entry = {**entry, "files": hash_folder(built)}
        if dropped := self.to_drop(entry):
            entry["dropped"] = dropped
        built.rename(folder)
        sync(folder.parent)
        times = self.timings()
        write_text(self.path / "timings.json", dump({**times, str(entry["stage"]): timing}))
        self.append(entry)
        shutil.rmtree(self.path / ".work", ignore_errors=True)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line to the ledger, and do what it says of files."""
        append(self.path / "ledger.jsonl", entry)
        self.ledger = read_ledger(self.path / "ledger.jsonl")
        self.tidy()

    def tidy(self) -> None:
        """What follows from the ledger and may have been cut off by a stop after its last line."""
        for folder in self.dropped:
            for file in (self.path / folder).glob(WHOLE):
                file.unlink()
        if self.written_pin != self.pin:
            _write_settings(self.path, self.config, self.pin)
            self.written_pin = self.pin

    def timings(self) -> dict[str, Any]:
        path = self.path / "timings.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def scores(self, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return json.loads((self.folder(entry) / SCORES).read_text())

    def matrix(self) -> ScoreMatrix:
        """R over the active stages; cells that were not measured are null.

        A stage of the mode `union` has learned several tasks, each a column of its own.

        A stage's scores.json holds `after` (its own row), and for the task it learned `before`
        (the row above it) and `base` (row 0).
        """
        stages = self.stages
        columns = [
            (task["id"], number)
            for number, entry in enumerate(stages, start=1)
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
        )


def settings_digest(config: Config) -> str:
    """The sha256 of the settings that a lineage is made with, wherever it and its base lie."""
    settings = config.to_dict()
    for key in (*FREE, "base", "revision", "general"):
        settings.pop(key)
    if settings["memory"]["choose"] == "balanced":  # what lineages older than this key do
        del settings["memory"]["choose"]
    _leave_out_default(settings)
    return digest(settings, config.general.ratio)


def moved(file: Any, start: Path, end: Path) -> Any:
    """A file's path, relative to `start`, as it is written relative to `end`; else unchanged."""
    if isinstance(file, dict) and "path" in file:
        return {**file, "path": moved(file["path"], start, end)}
    if not isinstance(file, str) or file.startswith("hub:") or Path(file).is_absolute():
        return file
    return os.path.relpath(start / file, end)


def _write_settings(path: Path, config: Config, base: dict[str, Any]) -> None:
    settings = {"format": FORMAT, **config.to_dict(), "base": base}
    for key in FREE:
        settings.pop(key)
    _leave_out_default(settings)
    settings["general"]["file"] = moved(config.general.file, Path.cwd(), path)
    write_text(path / "engram.yaml", yaml.safe_dump(settings, sort_keys=False))


def _leave_out_default(settings: dict[str, Any]) -> None:
    """Drop a newer key that has its default, so that older lineages, which lack it, go on."""
    if settings["memory"]["per_answer"] == 1:
        del settings["memory"]["per_answer"]
