"""The history that a ledger describes: its stages, which of them are active, and their base.

Each line of the ledger has a `verb`. `init` makes stage 0, and each line with a new `stage` makes
that stage from its `parent`. `revert` goes back to an earlier `stage`, and `rebase` gives the new
place of the `base`. All properties are pure functions of the lines.
"""

from typing import Any


KEPT = 2  # how many stages, the newest ones, keep their files of whole weights


def learned_by(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tasks that a stage learned: one, or in mode `union` all tasks of the stream."""
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
        """Return the lines of a stage and its ancestors, oldest first, without stage 0."""
        entries, ancestors = self.stage_entries, []
        while stage:
            ancestors.append(entries[stage])
            stage = entries[stage]["parent"]
        return ancestors[::-1]

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
    def dropped(self) -> set[str]:
        """The folders of stages whose whole weights were deleted; their other files remain."""
        return {folder for entry in self.ledger for folder in entry.get("dropped", ())}

    def to_drop(self, entry: dict[str, Any]) -> list[str]:
        """Return the folders whose whole weights are deleted when `entry` is the newest stage."""
        active = [line for line in [*self.stages, entry] if line.get("kind") == "weights"]
        kept = {line["folder"] for line in active[-KEPT:]}
        whole = {line["folder"] for line in self.ledger if line.get("kind") == "weights"}
        return sorted(whole - kept - self.dropped)
