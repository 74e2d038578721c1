"""`revert` goes back to an earlier stage, from which the next task will be learned."""

from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, nearest
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept


def revert(path: str | Path, to: int | None) -> dict[str, Any]:
    """Make stage `to` the newest again and return the new ledger line. See `perdure.api.revert`."""
    with locked(Lineage(path).path):
        lineage = Lineage(path)
        if to is None and not lineage.head:
            newest = max(lineage.stage_entries)
            raise PerdureError(
                f"{path}: stage 0 is the newest, so there is nothing to revert; go forward again "
                f"with --to {newest}"
                if newest
                else f"{path}: nothing has been learned yet, so there is nothing to revert"
            )
        target = lineage.stage_entries[lineage.head]["parent"] if to is None else to
        if target not in lineage.stage_entries:
            stages = map(str, lineage.stage_entries)
            raise PerdureError(f"{path}: no stage {target}; {nearest(str(target), stages)}")
        if target == lineage.head:
            raise PerdureError(f"{path}: stage {target} is already the newest; nothing to revert")
        stage_entry = lineage.stage_entries[target]
        check_kept(lineage, stage_entry)
        if "folder" in stage_entry:
            lineage.check_model(stage_entry)
        lineage.check_records(lineage.line(target))
        lineage.write_contained(stage_entry)
        lineage.append({"stage": target, "verb": "revert", "parent": lineage.head})
        return lineage.ledger[-1]
