"""What the ledger says: which stages there are, which are active, on what base they stand.

A line of the ledger has a `verb`. `init` makes stage 0, and every line with a new `stage` makes
that stage, on its `parent`; `revert` goes back to a `stage` that was made before; `rebase` says
where the `base` lies now. Pure functions of the lines.
"""

from typing import Any


KEPT = 2  # stages of whole weights that are kept, the newest ones


def learned_by(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The tasks that a stage has learned: one, or in mode `union` all of the stream."""
    return [*entry.get("with", ()), entry["task"]]


class History:
    ledger: list[dict[str, Any]]

    @property
    def made(self) -> dict[int, dict[str, Any]]:
        """The line that made each stage, by its number; the first one of that number."""
        return {entry["stage"]: entry for entry in reversed(self.ledger)}

    @property
    def head(self) -> int:
        """The stage the next one starts from; 0 is the base."""
        return self.ledger[-1]["stage"] if self.ledger else 0

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The ledger's lines of the active history, oldest first, without the base."""
        return self.line(self.head)

    def line(self, stage: int) -> list[dict[str, Any]]:
        """The lines of a stage and of those it stands on, oldest first, without the base."""
        made, line = self.made, []
        while stage:
            line.append(made[stage])
            stage = made[stage]["parent"]
        return line[::-1]

    @property
    def next_stage(self) -> int:
        return 1 + max((entry["stage"] for entry in self.ledger), default=0)

    @property
    def origin(self) -> dict[str, Any] | None:
        """The line of stage 0 when the lineage began on an adapter."""
        return self.ledger[0] if self.ledger and "folder" in self.ledger[0] else None

    @property
    def pin(self) -> dict[str, Any]:
        """The base: where it lies, and the hashes of its files."""
        return next(entry["base"] for entry in reversed(self.ledger) if "base" in entry)

    @property
    def dropped(self) -> set[str]:
        """Folders of the stages whose whole weights are gone; scores and ledger line remain."""
        return {folder for entry in self.ledger for folder in entry.get("dropped", ())}

    def to_drop(self, entry: dict[str, Any]) -> list[str]:
        """The folders whose whole weights go when `entry` becomes the newest stage."""
        active = [e for e in [*self.stages, entry] if e.get("kind") == "weights"]
        kept = {e["folder"] for e in active[-KEPT:]}
        whole = {e["folder"] for e in self.ledger if e.get("kind") == "weights"}
        return sorted(whole - kept - self.dropped)
