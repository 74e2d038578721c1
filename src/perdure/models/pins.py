"""The pin that identifies a base: its name or folder, its commit, and the SHA-256 of its files."""

import difflib
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from perdure.errors import PerdureError
from perdure.models.hashing import file_hash
from perdure.models.smollm2 import smollm2


DEFAULT = Path(__file__).parent.parent / "default_model"
BUILT_IN = ("default", "smollm2")
# The suffixes of weights, config, tokenizer and chat template. Other files are not part of a base.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Files that transformers prefers to others, or adds to them, once they are there.
ADDED = {
    *("chat_template.jinja", "tokenizer.json", "added_tokens.json"),
    *("special_tokens_map.json", "adapter_config.json"),
}
KEPT = (".safetensors", ".json", ".txt", ".model", ".jinja")


def locate(name: str) -> str:
    """Return the folder of "default" or "smollm2", and any other name unchanged."""
    if name == "smollm2":
        return smollm2()
    return str(DEFAULT) if name == "default" else name


def pin(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return the pin `{name, files}` of a base, with the `revision` (a commit) if it is on the hub.

    `files` has the SHA-256 of weights, config, tokenizer and chat template. A base on the hub must
    have been loaded before, because its files are read from the hub's cache.

    Raises:
        PerdureError: there is no such folder, and the base is not in the cache, or it has no
            weights as safetensors.
    """
    folder = Path(locate(name))
    check_weights(folder, name)
    if folder.is_dir():
        return {"name": name, "files": _hashes(folder)}
    snapshot = folder_of(name, revision)
    if snapshot is None:
        raise PerdureError(
            f"base {name!r}: no such folder, and not in the hub's cache; give its folder, or fetch "
            f"it with `hf download`{meant(name)}"
        )
    check_weights(snapshot, name)
    return {"name": name, "revision": snapshot.name, "files": _hashes(snapshot)}


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a base's files, on this machine; None if they are not here."""
    folder = Path(locate(name))
    if folder.is_dir():
        return folder
    try:
        config_file = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # a path is not a valid name on the hub
        return None
    return Path(config_file).parent if isinstance(config_file, str) else None


def check_weights(folder: Path, name: str) -> None:
    """Check that the folder of a base, if it is there, has weights as safetensors.

    Raises:
        PerdureError: it has none, or only pickled ones.
    """
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = next((p.name for kind in PICKLED for p in sorted(folder.glob(kind))), None)
    reason = f"{pickled} is a pickle, which could run code" if pickled else "it has no weights"
    raise PerdureError(
        f"base {name!r}: {reason}; give a base with safetensors, as save_pretrained writes them"
    )


def meant(name: str) -> str:
    """Return the end of an error line about a model: what its folder is, or a name like it."""
    folder = Path(name)
    if (folder / "ledger.jsonl").is_file():
        return f"; it is a lineage, and `perdure export {name} FOLDER` writes its newest model"
    if (folder / "adapter_config.json").is_file():
        return "; it is an adapter: give the model that it was trained on (`init --adapter FOLDER`)"
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    parent = folder.parent
    if not close and parent.is_dir():
        files = [*parent.glob("*/config.json"), *parent.glob("*/adapter_config.json")]
        folders = [file.parent.name for file in files if file.parent != folder]
        close = [
            str(parent / one) for one in difflib.get_close_matches(Path(name).name, folders, n=1)
        ]
    return f"; did you mean {close[0]!r}?" if close else ""


def check_pin(pinned: dict[str, Any]) -> None:
    """Check that the base is still the one that was pinned.

    Raises:
        PerdureError: the base is no longer there, or its files differ.
    """
    try:
        changed = differing(pinned, pin(pinned["name"], pinned.get("revision")))
    except PerdureError as error:
        raise PerdureError(
            f"{error}; if it has moved, give its new place with `perdure rebase`"
        ) from error
    if changed:
        raise PerdureError(
            f"base {pinned['name']!r} is not the one this lineage was made on: {changed[0]} "
            f"differs{f' and {len(changed) - 1} more' if changed[1:] else ''}; put its files back, "
            "or give their new place with `perdure rebase`"
        )


def differing(pinned: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Return the files of `pinned` that are missing or different in `present`, sorted.

    In a folder, a new file that changes the prompts or the model is different, too. In the hub's
    cache it is one that has been fetched since.
    """
    changed = {name for name, sha in pinned["files"].items() if present["files"].get(name) != sha}
    if "revision" not in present:
        changed |= (ADDED & present["files"].keys()) - pinned["files"].keys()
    return sorted(changed)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in KEPT)
    return {p.name: file_hash(p) for p in files}
