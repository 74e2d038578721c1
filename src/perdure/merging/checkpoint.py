"""The tensors of a checkpoint's safetensors files, read in pieces.

Files are read, not mapped into memory: what is mapped counts as memory of the process for as long
as the system leaves it there, so a limit could not be kept.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from perdure.errors import PerdureError, one_line
from perdure.merging.fold import Piece
from perdure.models.hashing import file_hash
from perdure.models.pins import PICKLED, folder_of, meant
from perdure.parsing import read_json


INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The data types that can be merged, and those of buffers, which are copied. Others are quantised.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
BUFFERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Endings of names in old files, which transformers changes when it loads them.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
CODES = {dtype: code for code, dtype in {**FLOATS, **BUFFERS}.items()}


class Stored(NamedTuple):
    """A tensor in a file: its file, its place there in bytes, its shape, and its data type."""

    file: Path
    begin: int
    shape: tuple[int, ...]
    code: str

    @property
    def dtype(self) -> torch.dtype:
        return FLOATS.get(self.code) or BUFFERS[self.code]

    @property
    def is_float(self) -> bool:
        return self.code in FLOATS


class Tensors:
    """The tensors of some safetensors files, by the names that transformers has for them.

    Args:
        files: the files.

    Raises:
        PerdureError: a file is damaged, or two have a tensor of the same name.
    """

    def __init__(self, files: list[Path]):
        self.files = files
        self.stored: dict[str, Stored] = {}
        for file in files:
            for own_name, stored in _header(file).items():
                name = own_name
                for old, new in RENAMED.items():
                    if own_name.endswith(old):
                        name = f"{own_name.removesuffix(old)}{new}"
                if name in self.stored:
                    other = self.stored[name].file.name
                    raise PerdureError(
                        f"{file}: its tensor {name} is in {other} as well; delete the file that "
                        "does not belong to the checkpoint"
                    )
                self.stored[name] = stored
        self._opened: dict[Path, Any] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the files open for a block, in which tensors can be read."""
        with ExitStack() as stack:
            for file in self.files:
                self._opened[file] = stack.enter_context(file.open("rb", buffering=0))
            yield
            self._opened = {}

    def read(self, name: str, piece: Piece | None = None) -> Tensor:
        """Return a tensor or a piece of it, in the data type of the file.

        Raises:
            PerdureError: the file ends before it.
        """
        stored = self.stored[name]
        piece = piece or Piece((), 0, prod(stored.shape))
        shape = shape_of(stored.shape, piece)
        if not piece.count:
            return torch.empty(shape, dtype=stored.dtype)
        # An empty tensor, because a bytearray would be filled with zeros first.
        content = torch.empty(piece.count * stored.dtype.itemsize, dtype=torch.uint8)
        self._fill(content.numpy().data, name, piece.offset)
        return content.view(stored.dtype).view(shape)

    def read_rows(self, name: str, rows: Tensor, width: int) -> Tensor:
        """Return rows of a tensor in any order, in the data type of the file.

        Args:
            name: the name of the tensor.
            rows: the numbers of the rows, [rows]; those of a negative number are zeros.
            width: the elements of a row.

        Returns:
            The rows, [rows, width].

        Raises:
            PerdureError: the file ends before one of them.
        """
        stored = self.stored[name]
        if not len(rows) * width:
            return torch.empty((len(rows), width), dtype=stored.dtype)
        row = width * stored.dtype.itemsize
        content = bytearray(len(rows) * row)
        # Rows that follow each other in the file as well are read at once.
        ends = (rows.diff() != 1) | (rows[:-1] < 0)
        begins = [0, *(ends.nonzero().flatten() + 1).tolist(), len(rows)]
        firsts = rows[begins[:-1]].tolist()
        for begin, end, first in zip(begins, begins[1:], firsts, strict=False):
            if first >= 0:
                self._fill(memoryview(content)[begin * row : end * row], name, first * width)
        return torch.frombuffer(content, dtype=stored.dtype).view(len(rows), width)

    def _fill(self, view: memoryview, name: str, offset: int) -> None:
        """Read what stands in a tensor from an element on.

        Raises:
            PerdureError: the file ends before it.
        """
        stored = self.stored[name]
        begin = stored.begin + offset * stored.dtype.itemsize
        while view:
            count = os.preadv(self._opened[stored.file].fileno(), [view], begin)
            if not count:
                raise PerdureError(f"{stored.file}: ends within {name}; get the file again")
            view, begin = view[count:], begin + count


def shape_of(shape: tuple[int, ...], piece: Piece) -> tuple[int, ...]:
    """Return the shape of a piece of a tensor."""
    for part in piece.index:
        if isinstance(part, slice):
            return (part.stop - part.start, *shape[1:])
        shape = shape[1:]
    return shape


def _header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file.

    Raises:
        PerdureError: it is damaged, or has a tensor of a data type that cannot be merged.
    """
    try:
        with safe_open(file, "pt"):  # type: ignore[no-untyped-call]  # checks the header
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise PerdureError(f"{file}: does not load ({one_line(error)}); save it again") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in {**FLOATS, **BUFFERS}:
            raise PerdureError(
                f"{file}: {name} is of data type {about['dtype']}, which is quantised; merge the "
                "unquantised checkpoint"
            )
        begin, shape = 8 + length + about["data_offsets"][0], tuple(about["shape"])
        tensors[name] = Stored(file, begin, shape, about["dtype"])
    return tensors


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model that is given by folder or by name on the hub.

    Raises:
        PerdureError: there is no such folder, and the model is not in the hub's cache.
    """
    folder = folder_of(name, revision)
    if folder is None:
        raise PerdureError(
            f"{name}: no such folder, and not in the hub's cache; give the folder of the "
            f"checkpoint, or fetch it with `hf download`{meant(name)}"
        )
    return folder


def model_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a whole model: those of its index, or the single one.

    Raises:
        PerdureError: there are none, or the index names a file that is not there.
    """
    if (folder / INDEX).is_file():
        try:
            weight_map = read_json(folder / INDEX)["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PerdureError(
                f"{folder / INDEX}: does not name the files of the weights; get it again"
            ) from error
        for name in names:
            if not isinstance(name, str) or "/" in name or not (folder / name).is_file():
                raise PerdureError(f"{folder}: no {name} in it, which its index names; get it")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise PerdureError(
            f"{folder}: {len(files)} safetensors files, and no {INDEX} that says which belong to "
            "the model; save it again with save_pretrained"
        )
    pickled = next((p.name for kind in PICKLED for p in sorted(folder.glob(kind))), None)
    reason = f"{pickled} is a pickle, which could run code" if pickled else "it has no weights"
    raise PerdureError(
        f"{folder}: {reason}; give a model with safetensors, as save_pretrained writes them"
    )


def hashes_of(files: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of files, by name."""
    return {file.name: file_hash(file) for file in files}
