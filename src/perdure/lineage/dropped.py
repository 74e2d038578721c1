"""What is said of a stage whose weights were deleted on purpose."""

from pathlib import Path
from typing import Any

from perdure.lineage.history import COMPACT, History


def how_to_restore(path: Path | str, stage: int | str, verb: str) -> str:
    """Return what makes the weights of a stage again, given the verb that made the stage.

    `stage` is its number, or N for one of several.
    """
    if verb != "learn":
        return "nothing makes them again, because the stage was not learned from rows"
    return f"`perdure repair {path} --stage {stage}` learns it again from its rows"


def gone(path: Path, history: History, entry: dict[str, Any]) -> str:
    """Return the error line for a stage whose weights were deleted; it lists the others.

    Args:
        path: the lineage's folder.
        history: the lineage.
        entry: the ledger's line of the stage.
    """
    present = [
        str(line["stage"])
        for line in history.stage_entries.values()
        if line["stage"] and not history.is_gone(line)
    ]
    stages = "".join(f"stage {', '.join(reversed(present))}, and " if present else "")
    by_compact = history.dropped_by(entry) == COMPACT
    how = "dropped by `perdure compact`" if by_compact else "removed, only its scores remain"
    return (
        f"{path}: the weights of stage {entry['stage']} were {how}; "
        f"{how_to_restore(path, entry['stage'], entry['verb'])}; available: {stages}the base (0)"
    )


def just_deleted(error: BaseException) -> str | None:
    """Return the error line for a file that another process has deleted while a verb read it.

    A new stage deletes weights of earlier ones. None means that the error is of another kind.
    """
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | Path):
        return None
    folder = Path(error.filename).parent
    path = folder.parent.parent
    if folder.parent.name != "stages" or not (path / "lineage.yaml").is_file():
        return None
    name = error.filename
    return f"{name}: missing; another process may have just deleted it, repeat the command"
