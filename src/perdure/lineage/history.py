"""The history that a ledger describes: its stages, which of them are active, and their base.

Each line of the ledger has a `verb`. `init` makes stage 0, and each line with a new `stage` makes
that stage from its `parent`. `revert` goes back to an earlier `stage`, and `rebase` gives the new
place of the `base`. A line says with `dropped` of which stages files were deleted on purpose, and
with `restored` of which of them the files are back. A stage `contains` the adapters of earlier ones
(`contained.py`). All properties are pure functions of the lines.
"""

from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, nearest
from perdure.models.layout import COMPACTED, MERGE_STATE, WHOLE


COMPACT, REPAIR = "compact", "repair"  # the verbs of lines that only delete and restore files
KEPT = 2  # how many stages, the newest ones, keep their files of whole weights


def learned_by(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks that a stage learned: one, or in mode `union` all tasks of the stream.

    A stage that only takes an arrival out has learned none.
    """
    if "undone" in entry:
        return []
    return [*entry.get("with", ()), entry["task"]]


class History:
    """The history of a lineage, read from `ledger`, its lines from the oldest to the newest."""

    ledger: list[dict[str, Any]]

    @property
    def stage_entries(self) -> dict[int, dict[str, Any]]:
        """The line that made each stage, by the stage's number."""
        return {entry["stage"]: entry for entry in reversed(self.ledger)}

    @property
    def head(self) -> int:
        """The stage from which the next one starts; 0 is the base."""
        return self.ledger[-1]["stage"] if self.ledger else 0

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The lines of the active stages, oldest first, without stage 0."""
        return self.line(self.head)

    def line(self, stage: int) -> list[dict[str, Any]]:
        """Return the lines of a stage and its ancestors, oldest first, without stage 0.

        Raises:
            PerdureError: there is no such stage.
        """
        entries, ancestors = self.stage_entries, []
        if stage and stage not in entries:
            raise PerdureError(f"no stage {stage}; {nearest(str(stage), map(str, entries))}")
        while stage:
            ancestors.append(entries[stage])
            stage = entries[stage]["parent"]
        return ancestors[::-1]

    @property
    def standing(self) -> list[dict[str, Any]]:
        """The lines of the active stages whose tasks are in the newest model, oldest first.

        An arrival that was taken out again (`perdure merge --undo`) is not among them, nor is the
        stage that took it out.
        """
        stages = self.stages
        taken_out = {entry["undone"] for entry in stages if "undone" in entry}
        return [e for e in stages if "undone" not in e and e["stage"] not in taken_out]

    @property
    def next_stage(self) -> int:
        """The number of the next stage; numbers of reverted stages are not used again."""
        return 1 + max((entry["stage"] for entry in self.ledger), default=0)

    @property
    def origin(self) -> dict[str, Any] | None:
        """The line of stage 0 if the lineage began with an adapter, else None."""
        return self.ledger[0] if self.ledger and "folder" in self.ledger[0] else None

    @property
    def pin(self) -> dict[str, Any]:
        """The pin of the base: its name or folder, and the hashes of its files."""
        return next(entry["base"] for entry in reversed(self.ledger) if "base" in entry)

    @property
    def dropped(self) -> dict[str, tuple[str, ...]]:
        """The patterns of the files that were deleted on purpose, by the stage's folder.

        `compact` drops weights and method state; a new stage drops older whole weights.
        """
        patterns: dict[str, tuple[str, ...]] = {}
        for entry in self.ledger:
            dropped_now = COMPACTED if entry["verb"] == COMPACT else (WHOLE, MERGE_STATE)
            patterns |= dict.fromkeys(entry.get("dropped", ()), dropped_now)
            for folder in entry.get("restored", ()):
                patterns.pop(folder, None)
        return patterns

    def dropped_files(self, entry: dict[str, Any]) -> list[str]:
        """Return the names of a stage's files that were deleted on purpose."""
        patterns = self.dropped.get(entry["folder"], ())
        return [name for name in entry["files"] if matches(name, patterns)]

    def is_gone(self, entry: dict[str, Any]) -> bool:
        """Return whether the weights of a stage were deleted on purpose."""
        return entry.get("folder") in self.dropped

    def dropped_by(self, entry: dict[str, Any]) -> str | None:
        """Return the verb that deleted the weights of a stage: `compact`, `learn`, or None."""
        patterns = self.dropped.get(entry.get("folder", ""))
        return None if patterns is None else COMPACT if patterns == COMPACTED else "learn"

    @property
    def contained(self) -> dict[str, list[str]]:
        """The folders of the stages that contain the adapter of another one, newest first.

        The keys are the folders of the others.
        """
        folders: dict[str, list[str]] = {}
        dropped = self.dropped
        for entry in self.ledger:
            for folder in entry.get("contains", ()):
                if entry["folder"] not in dropped:
                    folders[folder] = [entry["folder"], *folders.get(folder, ())]
        return folders

    def number_of(self, folder: str) -> int:
        """Return the number of the stage in a folder."""
        entries = self.stage_entries.items()
        return next(number for number, entry in entries if entry.get("folder") == folder)

    def within(self, entry: dict[str, Any]) -> list[str]:
        """Return the folders of the stages whose adapters a stage contains, oldest first."""
        later = entry["folder"]
        return sorted(other for other, holders in self.contained.items() if later in holders)

    @property
    def newest_change(self) -> dict[str, Any]:
        """The newest line that decides the next stage: files that come and go do not."""
        changes = (e for e in reversed(self.ledger) if e["verb"] not in (COMPACT, REPAIR))
        return next(changes)

    def to_drop(self, entry: dict[str, Any], mode: str = "sequential") -> list[str]:
        """Return the folders whose whole weights are deleted when `entry` is the newest stage.

        In the mode `per_task` each active stage answers its own task, and all are kept.
        """
        active = [line for line in [*self.stages, entry] if line.get("kind") == "weights"]
        kept = {line["folder"] for line in (active if mode == "per_task" else active[-KEPT:])}
        whole = {line["folder"] for line in self.ledger if line.get("kind") == "weights"}
        return sorted(whole - kept - self.dropped.keys())


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether the name of a stage's file matches one of some patterns."""
    return any(Path(name).match(pattern) for pattern in patterns)
