"""`verify`: walk the hashes of a lineage."""

from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage, settings_digest
from perdure.models.layout import WHOLE
from perdure.models.pins import differing, pin


def verify(path: str | Path) -> list[str]:
    """`perdure.api.verify`: what is not as the ledger says.

    Checked are the chain of the ledger's lines, every file of every stage (those of older whole
    weights may be gone, if a later line says so), the settings, the base, and whether anything lies
    in the folder that belongs to no stage.
    """
    lineage = Lineage(path)
    problems = []
    for entry in lineage.ledger:
        if "folder" in entry:
            problems += _stage(lineage, entry)
    known = {entry["folder"] for entry in lineage.ledger if "folder" in entry}
    for folder in sorted((lineage.path / "stages").glob("*")):
        if folder.relative_to(lineage.path).as_posix() not in known:
            problems.append(f"{folder}: of no stage in the ledger; a run was stopped, or delete it")
    if lineage.ledger[0]["settings"] != settings_digest(lineage.config):
        problems.append(
            f"{lineage.path / 'lineage.yaml'}: has other settings than it was made with"
        )
    if lineage.written_pin != lineage.pin:
        problems.append(f"{lineage.path / 'lineage.yaml'}: names another base than the ledger")
    return problems + _base(lineage.pin)


def _stage(lineage: Lineage, entry: dict[str, Any]) -> list[str]:
    folder, pinned = lineage.folder(entry), entry["files"]
    hashes = hash_folder(folder) if folder.is_dir() else {}
    gone = entry["folder"] in lineage.dropped
    missing = [
        name for name in pinned if name not in hashes and not (gone and Path(name).match(WHOLE))
    ]
    changed = [name for name in pinned if hashes.get(name, pinned[name]) != pinned[name]]
    added = [name for name in hashes if name not in pinned]
    return [
        f"{folder / name}: {what}"
        for names, what in ((missing, "missing"), (changed, "changed"), (added, "added"))
        for name in names
    ]


def _base(pinned: dict[str, Any]) -> list[str]:
    try:
        changed = differing(pinned, pin(pinned["name"], pinned.get("revision")))
    except PerdureError as error:
        return [str(error)]
    return [f"base {pinned['name']}: {name} missing or changed" for name in changed]
