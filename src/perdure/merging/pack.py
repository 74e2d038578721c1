"""A checkpoint stored as its difference from its base: a pack.

pack.json has the codec of each tensor of the checkpoint, `same` for one that is the base's, with
its shape and data type, and the hashes of all files. pack.safetensors has tensors of these names:

    raw.NAME        the tensor itself
    value.NAME      the elements that differ, in their order
    index.NAME      where they stand in their block of 65,536 elements, as 16 bits
    starts.NAME     how many stand before each block
    up.NAME         U S^(1/2) of the difference, in fp32
    down.NAME       S^(1/2) V^T

What is raw or sparse is the checkpoint bit by bit.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from perdure.config import Codec
from perdure.errors import NotFiniteError, PerdureError, one_line
from perdure.merging.checkpoint import CODES, FLOATS, Tensors
from perdure.merging.fold import Piece, pieces
from perdure.merging.magnitude import dot
from perdure.merging.output import Output
from perdure.models.hashing import file_hash
from perdure.parsing import read_json
from perdure.seeds import digest


PACKED, ABOUT = "pack.safetensors", "pack.json"
BLOCK = 1 << 16  # elements
Kind = Literal["same", "raw", "sparse", "lowrank"]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # to compare floats bit by bit


@dataclass(frozen=True)
class Coded:
    """How a tensor is stored.

    Args:
        codec: the codec.
        shape: the shape of the tensor.
        dtype: its data type in the checkpoint.
    """

    codec: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype


class Pack:
    """A pack that is read in pieces.

    Args:
        folder: the folder that `perdure pack` wrote.

    Raises:
        PerdureError: its files are damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        file = folder / ABOUT
        try:
            about = read_json(file)
            self.base_name, self.base = str(about["base_name"]), dict(about["base"])
            self.base_revision: str | None = about["base_revision"]
            self.checkpoint, self.exact = dict(about["checkpoint"]), bool(about["exact"])
            sha256 = str(about["sha256"])
            self.coded = {name: _coded(one) for name, one in about["tensors"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PerdureError(
                f"{file}: does not load ({one_line(error)}); pack the checkpoint again"
            ) from error
        if not (folder / PACKED).is_file() or file_hash(folder / PACKED) != sha256:
            raise PerdureError(
                f"{folder}: {PACKED} is not the file that {ABOUT} describes; pack the checkpoint "
                "again"
            )
        self.tensors = Tensors([folder / PACKED])
        for name, one in self.coded.items():
            missing = set(_parts(one.codec, name)) - self.tensors.stored.keys()
            if missing:
                raise PerdureError(
                    f"{folder}: {PACKED} has no {min(missing)}; pack the checkpoint again"
                )

    def open(self) -> AbstractContextManager[None]:
        """Keep the file open for a block."""
        return self.tensors.open()

    def read(self, name: str, piece: Piece, base: Tensor) -> Tensor:
        """Return a piece of a tensor of the checkpoint, in its data type there.

        Args:
            name: the name of the tensor.
            piece: which piece.
            base: the base's weights there, in any data type that holds them exactly.
        """
        one = self.coded[name]
        if one.codec == "same":
            return base.to(one.dtype)
        if one.codec == "raw":
            return self.tensors.read(f"raw.{name}", piece)
        if one.codec == "lowrank":
            wide = base.to(torch.promote_types(base.dtype, torch.float32))
            return (wide + self.change(name, piece, wide)).to(one.dtype)
        tensor = base.to(one.dtype, copy=True).contiguous()
        first, last = piece.offset // BLOCK, -(-(piece.offset + piece.count) // BLOCK)
        starts = self.tensors.read(f"starts.{name}", _span(first, last + 1))
        span = _span(int(starts[0]), int(starts[-1]))
        index = self.tensors.read(f"index.{name}", span).long() & (BLOCK - 1)
        block = torch.arange(first, last).repeat_interleave(starts.diff())
        place = block * BLOCK + index - piece.offset
        inside = (place >= 0) & (place < piece.count)
        values = self.tensors.read(f"value.{name}", span)
        tensor.view(-1)[place[inside]] = values[inside]
        return tensor

    def change(self, name: str, piece: Piece, base: Tensor) -> Tensor:
        """Return a piece of the change of a tensor, in the data type of the base's piece."""
        if self.coded[name].codec != "lowrank":
            return self.read(name, piece, base).to(base.dtype) - base
        up, down = (self.tensors.read(f"{part}.{name}").to(base.dtype) for part in ("up", "down"))
        return (up[piece.index] if piece.index else up) @ down


def _coded(about: dict[str, Any]) -> Coded:
    codec, shape = about["codec"], tuple(map(int, about["shape"]))
    if codec not in get_args(Kind):
        raise ValueError(f"unknown codec {codec!r}")
    return Coded(codec, shape, FLOATS[about["dtype"]])


def _parts(codec: Kind, name: str) -> list[str]:
    """Return the names of the tensors in which a tensor is stored."""
    kinds = {
        "same": (),
        "raw": ("raw",),
        "sparse": ("value", "index", "starts"),
        "lowrank": ("up", "down"),
    }
    return [f"{kind}.{name}" for kind in kinds[codec]]


def _span(begin: int, end: int) -> Piece:
    """Return a piece of a vector."""
    return Piece((slice(begin, end),), begin, end - begin)


def is_pack(folder: Path) -> bool:
    """Return whether a folder is that of a pack."""
    return (folder / ABOUT).is_file()


class Packer:
    """The difference of a checkpoint from its base, tensor by tensor.

    The files of both must be open.

    Args:
        base: the tensors of the base.
        whole: the tensors of the checkpoint, of the same names and shapes.
        codec: how changes are stored where that is smaller than the tensor itself.
        energy: which share of the sum of squares of a change a low rank must keep.
    """

    def __init__(self, base: Tensors, whole: Tensors, codec: Codec, energy: float):
        self.base, self.whole, self.codec, self.energy = base, whole, codec, energy

    def layout(self, name: str) -> tuple[Kind, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
        """Return the codec of a tensor, and the shapes and data types of what is stored of it."""
        stored = self.whole.stored[name]
        count, size = prod(stored.shape), stored.dtype.itemsize
        starts = self._starts(name)
        changed = int(starts[-1])
        if not changed:
            return "same", {}
        if self.codec == "lowrank" and len(stored.shape) == 2:
            rank, numbers = self._factors(name)[0].shape[1], sum(stored.shape)
            if 4 * rank * numbers < count * size:
                up, down = ((stored.shape[0], rank), (rank, stored.shape[1]))
                shapes = {f"up.{name}": (up, torch.float32), f"down.{name}": (down, torch.float32)}
                return "lowrank", shapes
        if self.codec != "raw" and changed * (2 + size) + 8 * len(starts) < count * size:
            return "sparse", {
                f"value.{name}": ((changed,), stored.dtype),
                f"index.{name}": ((changed,), torch.int16),
                f"starts.{name}": ((len(starts),), torch.int64),
            }
        return "raw", {f"raw.{name}": (stored.shape, stored.dtype)}

    def write(self, name: str, codec: Kind, output: Output) -> dict[str, float]:
        """Write a tensor, and return the sums of squares of its change, and of what is cut off.

        Raises:
            NotFiniteError: it has values that are infinite or not numbers.
        """
        parts = _parts(codec, name)
        if not parts:
            return {"square": 0.0, "lost": 0.0}
        if all(part in output.done for part in parts):
            return output.done[parts[0]]
        square = lost = 0.0
        if codec == "lowrank":
            up, down = self._factors(name)
            change = self._change(name)
            square, rest = dot(change, change), change - up @ down
            lost = dot(rest, rest)
            for part, factor in zip(parts, (up, down), strict=True):
                output.write(part, 0, factor)
        else:
            written = 0
            for piece, ours, theirs in self._pieces(name):
                change = theirs.double() - ours.double()
                square += dot(change, change)
                if codec == "raw":
                    output.write(parts[0], piece.offset, theirs)
                    continue
                places = _differ(ours, theirs).flatten().nonzero().flatten()
                index = (places + piece.offset) & (BLOCK - 1)
                output.write(parts[0], written, theirs.flatten()[places])
                output.write(parts[1], written, index.to(torch.int32).to(torch.int16))
                written += len(places)
            if codec == "sparse":
                output.write(parts[2], 0, self._starts(name))
        if not math.isfinite(square):
            raise NotFiniteError(
                f"{name}: the checkpoint has values there that are infinite or not numbers; check "
                "how it was trained"
            )
        facts = {"square": square, "lost": lost}
        for part in reversed(parts):  # the first, which has the facts, when all are there
            output.finish(part, **facts)
        return facts

    def _pieces(self, name: str) -> Iterator[tuple[Piece, Tensor, Tensor]]:
        for piece in pieces(self.whole.stored[name].shape):
            yield piece, self.base.read(name, piece), self.whole.read(name, piece)

    def _starts(self, name: str) -> Tensor:
        """Return how many elements that differ stand before each block, and in all."""
        blocks = -(-prod(self.whole.stored[name].shape) // BLOCK)
        counts = torch.zeros(blocks, dtype=torch.int64)
        for piece, ours, theirs in self._pieces(name):
            places = _differ(ours, theirs).flatten().nonzero().flatten() + piece.offset
            counts += torch.bincount(places // BLOCK, minlength=blocks)
        return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])

    def _change(self, name: str) -> Tensor:
        """Return the change of a whole tensor in fp32."""
        return self.whole.read(name).float() - self.base.read(name).float()

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the fewest directions of a change that keep the share of the sum of squares."""
        u, s, vh = torch.linalg.svd(self._change(name), full_matrices=False)
        squares = s.double().square()
        kept = squares.cumsum(0) / squares.sum()
        enough = (kept >= self.energy).nonzero().flatten()
        rank = int(enough[0]) + 1 if len(enough) else len(s)
        root = s[:rank].sqrt()
        return (u[:, :rank] * root).contiguous(), (root[:, None] * vh[:rank]).contiguous()


def _differ(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return where the checkpoint has other bits than the base in its data type."""
    integers = INTEGERS[theirs.dtype.itemsize]
    return ours.to(theirs.dtype).view(integers) != theirs.view(integers)


def about_pack(
    coded: dict[str, Coded], facts: list[dict[str, float]], **known: Any
) -> dict[str, Any]:
    """Return what pack.json says, without the hash of pack.safetensors.

    Args:
        coded: the tensors that are stored.
        facts: what `Packer.write` returned of each.
        known: what else it says.
    """
    square, lost = (sum(one[key] for one in facts) for key in ("square", "lost"))
    tensors = {
        name: {"codec": one.codec, "shape": list(one.shape), "dtype": CODES[one.dtype]}
        for name, one in coded.items()
    }
    exact = all(one.codec != "lowrank" for one in coded.values())
    kept = 1.0 - lost / square if square else 1.0
    return {**known, "exact": exact, "kept": kept, "tensors": tensors}


def identity_of(pack: Pack) -> str:
    """Return the identity of what a pack restores: that of its checkpoint if it is exact."""
    hashes = pack.checkpoint if pack.exact else {PACKED: file_hash(pack.folder / PACKED)}
    return digest(sorted(hashes.values()))
