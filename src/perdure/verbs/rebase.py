"""`rebase` records a new location of the base. The weights of the base stay the same."""

from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.models.pins import differing, pin


def rebase(path: str | Path, base: str, revision: str | None) -> dict[str, Any]:
    """Record the base's new location and return the new ledger line. See `perdure.api.rebase`."""
    with locked(Lineage(path).path):
        lineage = Lineage(path)
        lineage.tidy()
        new_pin = pin(base, revision)
        if changed := differing(lineage.pin, new_pin):
            raise PerdureError(
                f"{base}: not the base of {path}: {', '.join(changed)} "
                f"{'differs' if len(changed) == 1 else 'differ'}; for another model, make a new "
                "lineage with `perdure init --adapter STAGE`"
            )
        if all(new_pin.get(key) == lineage.pin.get(key) for key in ("name", "revision")):
            raise PerdureError(f"{path}: the base is already there; nothing to rebase")
        files = {name: new_pin["files"][name] for name in lineage.pin["files"]}
        moved = {**new_pin, "files": files}
        lineage.append(
            {"stage": lineage.head, "verb": "rebase", "parent": lineage.head, "base": moved}
        )
        return lineage.ledger[-1]
