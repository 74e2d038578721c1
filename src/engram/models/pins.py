"""What makes a base this base: where it lies, its commit on the hub, the sha256 of its files."""

import difflib
import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from engram.errors import EngramError
from engram.models.smollm2 import smollm2


DEFAULT = Path(__file__).parent.parent / "default_model"
BUILT_IN = ("default", "smollm2")
# Weights, config, tokenizer and chat template; not what a folder may hold beside them.
KEPT = (".safetensors", ".json", ".txt", ".model", ".jinja")


def locate(name: str) -> str:
    """Where transformers finds the base: a folder for "default" and "smollm2", else the name."""
    if name == "smollm2":
        return smollm2()
    return str(DEFAULT) if name == "default" else name


def pin(name: str, revision: str | None = None) -> dict[str, Any]:
    """`{name, files}`, and the `revision` (a commit) for a name of the hub.

    `files` holds the sha256 of weights, config, tokenizer and chat template. A name of the hub must
    have been loaded before: its files are those in the hub's cache.
    """
    folder = Path(locate(name))
    if folder.is_dir():
        return {"name": name, "files": _hashes(folder)}
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # a path is no name
        found = None
    if not isinstance(found, str):
        raise EngramError(
            f"base {name!r}: no such folder, and not in the hub's cache; give its folder, or fetch "
            f"it with `hf download`{meant(name)}"
        )
    snapshot = Path(found).parent
    return {"name": name, "revision": snapshot.name, "files": _hashes(snapshot)}


def meant(name: str) -> str:
    """The end of an error line about a base's name: the model at hand whose name is close to it."""
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_pin(pinned: dict[str, Any]) -> None:
    """That the base is still the one that was pinned.

    Raises:
        EngramError: it moved, or the files that differ.
    """
    try:
        changed = differing(pinned, pin(pinned["name"], pinned.get("revision")))
    except EngramError as error:
        raise EngramError(f"{error}; if it has moved, say where to with `engram rebase`") from error
    if changed:
        raise EngramError(
            f"base {pinned['name']!r} is not the one this lineage was made on: {changed[0]} "
            f"differs{f' and {len(changed) - 1} more' if changed[1:] else ''}; put its files back, "
            "or say where they lie now with `engram rebase`"
        )


def differing(pinned: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The files of `pinned` that are missing or other in `found`, sorted."""
    return sorted(n for n, sha in pinned.get("files", {}).items() if found["files"].get(n) != sha)


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in KEPT)
    return {p.name: file_hash(p) for p in files}
