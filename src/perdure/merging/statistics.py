"""Statistics of a checkpoint on rows, in a folder of their own: what some rules merge by.

statistics.safetensors has a tensor for each tensor of the checkpoint that they are about, under the
same name, and statistics.json the hashes of that file and of the checkpoint, and what they are.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from perdure.errors import PerdureError, one_line
from perdure.merging.checkpoint import Tensors
from perdure.merging.fold import Piece
from perdure.merging.rule import Place
from perdure.models.hashing import file_hash
from perdure.parsing import read_json


WEIGHTS, ABOUT = "statistics.safetensors", "statistics.json"
Measured = Literal["fisher", "gram"]


class Statistics:
    """Statistics of a checkpoint.

    Args:
        folder: the folder that `perdure statistics` wrote.

    Raises:
        PerdureError: there are none, or their files are damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        file = folder / ABOUT
        if not file.is_file() or not (folder / WEIGHTS).is_file():
            raise PerdureError(
                f"{folder}: no {ABOUT} and {WEIGHTS} in it; make them with `perdure statistics`"
            )
        try:
            about = read_json(file)
            self.kind: Measured = about["kind"]
            self.checkpoint: dict[str, str] = dict(about["checkpoint"])
            self.mean = float(about["mean"])
            self.sha256 = str(about["sha256"])
        except (ValueError, TypeError, KeyError) as error:
            raise PerdureError(
                f"{file}: does not load ({one_line(error)}); make it again"
            ) from error
        if self.kind not in get_args(Measured) or file_hash(folder / WEIGHTS) != self.sha256:
            raise PerdureError(
                f"{folder}: {WEIGHTS} is not the file that {ABOUT} describes; make both again with "
                "`perdure statistics`"
            )
        self.tensors = Tensors([folder / WEIGHTS])

    def open(self) -> AbstractContextManager[None]:
        """Keep the file open for a block."""
        return self.tensors.open()

    def check(self, checkpoint: str, hashes: Mapping[str, str], places: list[Place]) -> None:
        """Check that they are of a checkpoint, and fit its tensors.

        Raises:
            PerdureError: they are of another one, or of another shape.
        """
        if self.checkpoint != dict(hashes):
            raise PerdureError(
                f"{self.folder}: are statistics of another checkpoint than {checkpoint}, or its "
                "files have changed since; make them again with `perdure statistics`"
            )
        for place in places:
            stored = self.tensors.stored.get(place.tensor)
            wanted = place.shape if self.kind == "fisher" else (inputs_of(place),) * 2
            if stored is not None and stored.shape != wanted:
                raise PerdureError(
                    f"{self.folder}: {place.tensor} is of another shape than that of {checkpoint}"
                )

    def read(self, name: str, piece: Piece, dtype: torch.dtype) -> Tensor | None:
        """Return the statistic of a piece of a tensor, None if there is none of that tensor.

        A Fisher information is divided by its mean over all weights. A Gram matrix is that of the
        whole tensor.
        """
        if name not in self.tensors.stored:
            return None
        if self.kind == "gram":
            return self.tensors.read(name).to(dtype)
        return self.tensors.read(name, piece).to(dtype) / (self.mean or 1.0)


def inputs_of(place: Place) -> int:
    """Return the number of inputs of a linear layer, 0 for what is none."""
    if place.role != "matrix" or len(place.shape) != 2:
        return 0
    return place.shape[0 if place.transposed else 1]


def write_statistics(
    folder: Path, kind: Measured, tensors: dict[str, Tensor], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write statistics into a folder, and return what statistics.json says of them.

    Args:
        folder: the folder, which exists.
        kind: what they are.
        tensors: the statistics, by the names of the checkpoint's tensors.
        about: the hashes of the checkpoint, as `checkpoint`, and how they were measured.
    """
    values = {name: tensor.float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
    count = sum(tensor.numel() for tensor in values.values())
    total = sum(tensor.sum(dtype=torch.float64).item() for tensor in values.values())
    written = {
        "kind": kind,
        **about,
        "mean": total / count if count else 0.0,
        "sha256": file_hash(folder / WEIGHTS),
    }
    (folder / ABOUT).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return written
