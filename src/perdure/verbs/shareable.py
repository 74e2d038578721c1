"""The files of a stage that may leave a lineage: one list for `push` and `export`.

They are what a user of the model needs: weights, the adapter's settings, the tokenizer, an
encoder's head, and the card. Everything else stays: rows, answers to them, scores, what only
further learning needs, the ledger, and files that somebody has put into the stage's folder.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.disk import check_tree, open_file
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.models.hashing import file_hash
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, CARD, HEAD_WEIGHTS
from perdure.parsing import read_json


MODEL = (
    *(ADAPTER_WEIGHTS, ADAPTER_SETTINGS, HEAD_WEIGHTS, CARD),
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
)
SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
TEMPLATES = re.compile(r"additional_chat_templates/[\w-]+\.jinja")


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names that the files of a tokenizer may have."""
    return {*TOKENIZER, *tokenizer.vocab_files_names.values()}


def is_shareable(name: str, of_tokenizer: Iterable[str]) -> bool:
    """Return whether a file of a stage may leave the lineage.

    Args:
        name: the file's name, relative to the stage's folder.
        of_tokenizer: the names of the tokenizer's files.
    """
    if name in MODEL or SHARDS.fullmatch(name) or TEMPLATES.fullmatch(name):
        return True
    return name in of_tokenizer


def copy_shareable(
    lineage: Lineage, entry: dict[str, Any], tokenizer: PreTrainedTokenizerBase, to: Path
) -> None:
    """Copy the files of a stage that may leave the lineage into a new folder.

    The settings of an adapter name the base by its present name, which may have changed.

    Raises:
        PerdureError: a file is missing, is not a file, or has another hash than in the ledger.
    """
    of_tokenizer = tokenizer_files(tokenizer)
    to.mkdir(parents=True)
    for name, sha256 in sorted(entry["files"].items()):
        if not is_shareable(name, of_tokenizer):
            continue
        # Only the adapter may be in a temporary folder.
        folder = lineage.loadable(entry) if name == ADAPTER_WEIGHTS else lineage.folder(entry)
        copy = to / name
        copy.parent.mkdir(exist_ok=True)
        try:
            with open_file(folder / name, "rb") as source, open_file(copy, "xb") as target:
                shutil.copyfileobj(source, target)
        except FileNotFoundError as error:
            raise PerdureError(f"{folder / name}: missing; restore it from a copy") from error
        if file_hash(copy) != sha256:
            raise PerdureError(
                f"{folder / name}: is not as the ledger says; restore it from a copy"
            )
    _name_base(to / ADAPTER_SETTINGS, lineage.pin["name"])


def _name_base(settings: Path, name: str) -> None:
    """Write the base's present name into an adapter's settings."""
    if not settings.exists():
        return
    written = read_json(settings)
    if written["base_model_name_or_path"] != name:
        text = json.dumps(written | {"base_model_name_or_path": name}, sort_keys=True, indent=2)
        settings.write_text(text + "\n", encoding="utf-8")


def check_shareable(folder: Path, of_tokenizer: Iterable[str]) -> None:
    """Check that all files of an exported model may leave the lineage.

    Raises:
        PerdureError: one may not.
    """
    check_tree(folder)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    for name in names:
        if not is_shareable(name, of_tokenizer):
            raise PerdureError(f"export: {name} is not a file of a model; report this as a bug")
