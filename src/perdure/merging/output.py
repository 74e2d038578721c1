"""Tensors written to safetensors files piece by piece, so that a stopped process can go on.

The place of each tensor in its file is known before anything is written. Each tensor that is
complete gets a line in a journal, with the hash of its bytes. The same command finds these lines,
compares the hashes with the bytes in the files, and writes only what is missing.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.disk import fresh_folder
from perdure.merging.checkpoint import CODES, INDEX, SINGLE
from perdure.writing import sync, writing


JOURNAL = "journal.jsonl"
SHARD = 5 * 10**9  # the most bytes of a file
READ = 1 << 22  # how many bytes are hashed at a time


class Output:
    """The files of some tensors in a folder.

    Args:
        folder: the folder, which is made if it does not exist.
        tensors: the shape and data type of each tensor, by name.
        key: the hash of everything that decides the tensors. If the folder has the journal of
            another key, its files are deleted.
        single: the name of the file, if it must be one. Otherwise they are named as
            `save_pretrained` does.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        key: str,
        single: str | None = None,
    ):
        self.folder, self.key = folder, key
        self.tensors = tensors
        # Larger data types come first, so that each tensor begins at a multiple of its own.
        order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
        shards = [order] if single else _shards({name: self.size(name) for name in order})
        names = [single or SINGLE]
        if len(shards) > 1:
            names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in _from_1(shards)]
        self.files = {folder / name: shard for name, shard in zip(names, shards, strict=True)}
        self.sharded = len(shards) > 1
        self.done: dict[str, dict[str, Any]] = {}  # the facts about the complete tensors
        self._begins: dict[str, tuple[Path, int]] = {}
        self._headers: dict[Path, bytes] = {}
        for file, shard in self.files.items():
            self._lay_out(file, shard)
        self._opened: dict[Path, Any] = {}
        self._hashes: dict[str, Any] = {}  # of the tensors that are being written

    def size(self, name: str) -> int:
        """Return the size of a tensor in bytes."""
        shape, dtype = self.tensors[name]
        return prod(shape) * dtype.itemsize

    def _lay_out(self, file: Path, names: list[str]) -> None:
        """Compute the header of a file and the places of its tensors."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        begin, begins = 0, {}
        for name in names:
            shape, dtype = self.tensors[name]
            end = begin + self.size(name)
            about = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            header[name], begins[name], begin = about, begin, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._headers[file] = len(text).to_bytes(8, "little") + text
        for name, offset in begins.items():
            self._begins[name] = file, len(self._headers[file]) + offset

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open the files for a block, new ones or those of a process that was stopped."""
        journal = self.folder / JOURNAL
        with writing(self.folder), ExitStack() as stack:
            lines = _lines(journal) if journal.is_file() else []
            if not lines or lines[0].get("key") != self.key:
                fresh_folder(self.folder)
                lines = []
            for file, header in self._headers.items():
                self._opened[file] = stack.enter_context(
                    file.open("r+b" if file.is_file() else "w+b", buffering=0)
                )
                self._opened[file].truncate(self._size(file))
                os.pwrite(self._opened[file].fileno(), header, 0)
            for line in lines[1:]:
                if line.get("tensor") in self.tensors and self._hashed(line["tensor"]) == line.get(
                    "sha256"
                ):
                    self.done[line["tensor"]] = line.get("facts", {})
            self._journal = stack.enter_context(journal.open("a" if lines else "w"))
            if not lines:
                self._note({"key": self.key})
            yield
        for file in self.files:
            sync(file)

    def _size(self, file: Path) -> int:
        return len(self._headers[file]) + sum(self.size(name) for name in self.files[file])

    def write(self, name: str, offset: int, values: Tensor) -> None:
        """Write a piece of a tensor; the pieces must come in their order.

        Args:
            name: the name of the tensor.
            offset: how many elements of the tensor stand before the piece.
            values: the piece, in the data type of the tensor.
        """
        if offset == 0:
            self._hashes[name] = hashlib.sha256()
        content = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        self._hashes[name].update(content)
        file, begin = self._begins[name]
        view, at = memoryview(content), begin + offset * values.dtype.itemsize
        while view:
            count = os.pwrite(self._opened[file].fileno(), view, at)
            view, at = view[count:], at + count

    def finish(self, name: str, **facts: Any) -> None:
        """Note that all pieces of a tensor were written, with facts about it."""
        sha256 = self._hashes.pop(name, hashlib.sha256()).hexdigest()
        self._note({"tensor": name, "sha256": sha256, "facts": facts})
        self.done[name] = facts

    def complete(self) -> None:
        """Write which file has which tensor, if there are several, and delete the journal."""
        self._write_index()
        (self.folder / JOURNAL).unlink()

    def _write_index(self) -> None:
        if not self.sharded:
            return
        weight_map = {name: self._begins[name][0].name for name in sorted(self.tensors)}
        total = sum(self.size(name) for name in self.tensors)
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")

    def _note(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def _hashed(self, name: str) -> str:
        """Return the hash of a tensor's bytes in its file."""
        file, begin = self._begins[name]
        sha256, left = hashlib.sha256(), self.size(name)
        while left:
            content = os.pread(self._opened[file].fileno(), min(READ, left), begin)
            if not content:
                break
            sha256.update(content)
            begin, left = begin + len(content), left - len(content)
        return sha256.hexdigest()


def _from_1(values: list[Any]) -> range:
    return range(1, len(values) + 1)


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Divide tensors among files of at most SHARD bytes, or of one tensor."""
    shards: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if shards[-1] and total + size > SHARD:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += size
    return shards


def _lines(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, up to the first that is not complete."""
    lines = []
    for text in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines
