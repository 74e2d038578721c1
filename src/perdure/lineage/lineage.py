"""The lineage: a folder with a model's whole history."""

import difflib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from perdure.config import Config, deciding_keys, load_config
from perdure.errors import PerdureError, nearest
from perdure.lineage.files import dump, hash_folder, locked, sync, write_text
from perdure.lineage.history import History, learned_by
from perdure.lineage.ledger import append, read_ledger
from perdure.measure.matrix import ScoreMatrix
from perdure.models.layout import SCORES, VERDICT, WHOLE
from perdure.seeds import digest


FORMAT = 1
# Keys that may differ between runs of one lineage, because they have no effect on its bytes.
FREE = ("lineage", "data")
# The files of a new lineage before its lineage.yaml, which is written last.
REMAINS = ("lock", "stages", "ledger.jsonl", ".lineage.yaml.new")
STARTING_ADAPTER = "stages/0000-adapter"  # the adapter with which a lineage began, if any


class Lineage(History):
    """A lineage on disk: `lineage.yaml`, `ledger.jsonl`, `stages/`, `timings.json` and `lock`.

    Stage 0 is the untouched base. A stage exists if and only if it is in the ledger.

    Raises:
        PerdureError: the folder is not a lineage, or a file of it is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        settings = self.path / "lineage.yaml"
        if not settings.is_file():
            raise PerdureError(
                f"{self.path}: not a lineage (no lineage.yaml in it); {self._hint()}"
            )
        try:
            values = yaml.safe_load(settings.read_text(encoding="utf-8"))
            file_format = values.pop("format")
            self.written_pin = values.pop("base")
        except (yaml.YAMLError, AttributeError, KeyError) as error:
            raise PerdureError(
                f"{settings}: not a lineage's settings; restore it from a copy"
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
        base = {"base": self.pin["name"], "revision": self.pin.get("revision")}
        self.config: Config = load_config({**values, **base})
        self.config.general.file = moved(self.config.general.file, self.path, Path.cwd())

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
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            (path / "ledger.jsonl").unlink(missing_ok=True)
            shutil.rmtree(path / "stages", ignore_errors=True)
            (path / "stages").mkdir()
            settings = settings_digest(config)
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
            _write_settings(path, config, base)
        return cls(path)

    @staticmethod
    def check_vacant(path: str | Path) -> None:
        """Check that a lineage can be created in a folder.

        Files of an earlier `create` that was stopped do not matter.

        Raises:
            PerdureError: the folder already has other files.
        """
        path = Path(path)
        if not path.exists():
            return
        remains = path.is_dir() and {p.name for p in path.iterdir()} <= set(REMAINS)
        if not remains or any(p != path / STARTING_ADAPTER for p in path.glob("stages/*")):
            raise PerdureError(f"{path}: exists and is not empty; give a new folder")

    def _hint(self) -> str:
        """Return the end of an error line: a lineage with a similar name, or how to make one."""
        names = [path.parent.name for path in self.path.parent.glob("*/lineage.yaml")]
        close = difflib.get_close_matches(self.path.name, names, n=1)
        if close:
            return f"did you mean {self.path.with_name(close[0])}?"
        return f"make one with `perdure init {self.path}`"

    def check_unchanged(self, config: Config, base: dict[str, Any]) -> None:
        """Check that settings and a base's pin are those with which the lineage was made.

        Raises:
            PerdureError: they differ; the line names the keys.
        """
        old, new = self.config.to_dict(), config.to_dict()
        for settings in (old, new):
            settings["training"] = deciding_keys(settings["training"])
        old["general"]["file"] = moved(self.config.general.file, Path.cwd(), self.path)
        new["general"]["file"] = moved(config.general.file, Path.cwd(), self.path)
        changed = [key for key in old if key not in FREE and key != "base" and old[key] != new[key]]
        if self._is_another_base(base):
            changed.append("base")
        if changed:
            raise PerdureError(
                f"{self.path}: made with other settings ({', '.join(changed)} differ); "
                "restore them or give a new folder with lineage=FOLDER"
            )

    def _is_another_base(self, base: dict[str, Any]) -> bool:
        """Return whether a pin is of another base; files added to the base do not matter."""
        elsewhere = any(base.get(key) != self.pin.get(key) for key in ("name", "revision"))
        pinned = self.pin.get("files", {}).items()
        return elsewhere or any(base["files"].get(name) != sha for name, sha in pinned)

    def folder(self, entry: dict[str, Any]) -> Path:
        """Return the folder of a stage."""
        return self.path / entry["folder"]

    def at(self, stage: int) -> dict[str, Any]:
        """Return the line of the ledger that made a stage.

        Raises:
            PerdureError: there is no such stage, or it is stage 0.
        """
        if stage and stage in self.stage_entries:
            return self.stage_entries[stage]
        stages = [str(number) for number in self.stage_entries]
        raise PerdureError(f"{self.path}: no stage {stage}; {nearest(str(stage), stages)}")

    def work(self, name: str, key: str) -> Path:
        """Return the working folder of the unfinished stage `name`, and delete any other one.

        `key` is the hash of everything that the stage depends on. The same command therefore finds
        its own checkpoints again, and a different command starts anew.
        """
        folder = self.path / ".work" / f"{name}-{key[:16]}"
        for other in (self.path / ".work").glob("*"):
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, built: Path, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        """Make the folder `built` the next stage.

        It is synced and renamed before the line is added to the ledger, which is the commit.
        """
        folder = self.path / entry["folder"]
        for path in [*built.rglob("*"), built]:
            sync(path)
        if folder.exists():  # renamed by a run that stopped before it wrote the ledger
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
        """Add a line to the ledger, and delete the files that it declares as dropped."""
        append(self.path / "ledger.jsonl", entry)
        self.ledger = read_ledger(self.path / "ledger.jsonl")
        self.tidy()

    def tidy(self) -> None:
        """Bring the files in line with the ledger, if a process stopped after its last line."""
        for folder in self.dropped:
            for file in (self.path / folder).glob(WHOLE):
                file.unlink()
        if self.written_pin != self.pin:
            _write_settings(self.path, self.config, self.pin)
            self.written_pin = self.pin

    def timings(self) -> dict[str, Any]:
        """Return the timings of each stage, by its number as text."""
        path = self.path / "timings.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def scores(self, entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the scores that were measured at a stage (see `matrix`)."""
        return json.loads((self.folder(entry) / SCORES).read_text())

    def verdict(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Return the verdict on a stage (`measure.verdict`), None if it has none.

        Raises:
            PerdureError: its file is damaged.
        """
        file = self.folder(entry) / VERDICT if "folder" in entry else None
        if file is None or not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PerdureError(f"{file}: damaged ({error}); restore it from a copy") from error

    def matrix(self) -> ScoreMatrix:
        """Return the score matrix R of the active stages; cells that were not measured are None.

        A stage of the mode `union` has learned several tasks, each a column of its own.

        The scores.json of a stage has `after` (the stage's own row of R), and for the task that it
        learned `before` (the row above) and `base` (row 0).
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
    """Return the SHA-256 of a lineage's settings, which does not depend on any folder's place."""
    settings = config.to_dict()
    for key in (*FREE, "base", "revision", "general"):
        settings.pop(key)
    return digest(settings, config.general.ratio)


def moved(file: Any, start: Path, end: Path) -> Any:
    """Convert a path that is relative to the folder `start` to one relative to the folder `end`.

    `file` is a path or a mapping with `path`. Absolute paths and other values are unchanged.
    """
    if isinstance(file, dict) and "path" in file:
        return {**file, "path": moved(file["path"], start, end)}
    if not isinstance(file, str) or file.startswith("hub:") or Path(file).is_absolute():
        return file
    return os.path.relpath(start / file, end)


def _write_settings(path: Path, config: Config, base: dict[str, Any]) -> None:
    settings = {"format": FORMAT, **config.to_dict(), "base": base}
    for key in FREE:
        settings.pop(key)
    settings["general"]["file"] = moved(config.general.file, Path.cwd(), path)
    write_text(path / "lineage.yaml", yaml.safe_dump(settings, sort_keys=False))
