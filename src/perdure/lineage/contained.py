"""Adapters that are stored within those of later stages.

Some methods give each task ranks of its own (`methods/shared/adapter_bank.py`), so the adapter of a
stage is the first ranks of the next one, bit by bit:

    A_t = [A_{t-1}; A_new],    B_t = [B_{t-1}, B_new]

Stored at each stage, N stages of rank r would take 1 + 2 + ... + N times the space of one task.
So the file of the earlier stage is deleted once a later one contains it, and is cut out of that
again where it is needed, to the bytes whose hash the ledger has. Reading a stage writes nothing
into the lineage: the file then stands in a temporary folder.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from perdure.errors import SHOWN_AS, PerdureError
from perdure.models.hashing import file_hash
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from perdure.parsing import read_json
from perdure.writing import writing


if TYPE_CHECKING:
    from torch import Tensor

# The temporary folders of this process, by the stage's folder and the hashes of its files.
_COPIES: dict[tuple[Path, tuple[str, ...]], tempfile.TemporaryDirectory[str]] = {}


def contains(later: Path, earlier: Path, sha256: str) -> bool:
    """Return whether the adapter in one stage's folder contains that of an earlier stage.

    Args:
        later: the folder of the later stage.
        earlier: the folder of the earlier stage.
        sha256: the hash of the earlier adapter's file.
    """
    rank, later_rank = _rank_of(earlier), _rank_of(later)
    if rank is None or later_rank is None or rank >= later_rank:
        return False
    return cut_out(later, earlier, sha256) is not None


def cut_out(later: Path, earlier: Path, sha256: str) -> bytes | None:
    """Return the file of an earlier stage's adapter, cut out of a later one's.

    None means that it cannot be read, or that the bytes have another hash. See `contains` for the
    arguments.
    """
    from safetensors.torch import save  # torch is slow to import, and rarely needed here

    rank = _rank_of(earlier)
    if rank is None:
        return None
    try:
        with safe_open(later / ADAPTER_WEIGHTS, framework="pt") as file:
            parts = {name: _first(file, name, rank) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, IndexError):  # an IndexError: a factor without two dimensions
        return None
    content = save(parts, metadata={"format": "pt"})
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _first(file: safe_open, name: str, rank: int) -> "Tensor":
    """Return the first ranks of a factor, without reading the others: rows of A, columns of B."""
    if ".lora_A." in name:
        return file.get_slice(name)[:rank]
    if ".lora_B." in name:
        return file.get_slice(name)[:, :rank].contiguous()
    return file.get_tensor(name)


def copy_with(stage_folder: Path, names: Collection[str], content: bytes) -> Path:
    """Return a temporary folder with a stage's files and its adapter, until the process ends.

    Args:
        stage_folder: the stage's folder.
        names: the names of its files beside the adapter's.
        content: the file of its adapter.
    """
    hashes = [file_hash(stage_folder / name) for name in names]
    key = (stage_folder.resolve(), (hashlib.sha256(content).hexdigest(), *hashes))
    if key not in _COPIES or not (Path(_COPIES[key].name) / ADAPTER_WEIGHTS).exists():
        copy = tempfile.TemporaryDirectory(prefix=f"{stage_folder.name}-")
        with writing(Path(copy.name)):
            for name in names:
                shutil.copyfile(stage_folder / name, Path(copy.name) / name)
            (Path(copy.name) / ADAPTER_WEIGHTS).write_bytes(content)
        _COPIES[key] = copy
        SHOWN_AS[copy.name] = str(stage_folder)
    return Path(_COPIES[key].name)


def _rank_of(stage_folder: Path) -> int | None:
    """Return the rank of the LoRA adapter in a stage's folder, None if there is none."""
    try:
        rank = read_json(stage_folder / ADAPTER_SETTINGS)["r"]
    except (OSError, ValueError, LookupError, TypeError, PerdureError):
        return None
    return rank if isinstance(rank, int) and rank > 0 else None
