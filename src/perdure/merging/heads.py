"""The heads of encoders, which are merged by label: each expert has rows for the labels it learned.

A rule works on what checkpoints have in common. Heads have not: a task brings labels of its own. So
the row of a label is, with each rule, the weighted mean over the checkpoints that have learned it,
and a label that only one has keeps its row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.models.layout import HEAD_WEIGHTS
from perdure.models.stage_files import read_head, write_head


@dataclass(frozen=True)
class Heads:
    """What was merged of some heads.

    Args:
        rows: the row of each label, [width + 1], the bias last.
        weights: the sum of the weights of the checkpoints that have the label.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def arrive(self, head: Mapping[str, Tensor], weight: float) -> "Heads":
        """Return them with one more head: w <- w + w_k, row <- row + (w_k / w) (row_k - row)."""
        rows, weights = {**self.rows}, {**self.weights}
        for label, row in head.items():
            weights[label] = weights.get(label, 0.0) + weight
            before = rows.get(label, row)
            share = weight / weights[label] if weights[label] else 0.0
            rows[label] = before + share * (row - before)
        return Heads(rows, weights)

    def without(self, head: Mapping[str, Tensor], weight: float) -> "Heads":
        """Return them without a head that had arrived, the inverse of `arrive`.

        A label that only this one had is removed; labels that it did not have keep their bits.
        """
        rows, weights = {**self.rows}, {**self.weights}
        for label, row in head.items():
            left = weights[label] - weight
            if abs(left) <= 1e-9 * abs(weights[label]):
                del rows[label], weights[label]
                continue
            rows[label] = rows[label] + weight / left * (rows[label] - row)
            weights[label] = left
        return Heads(rows, weights)

    def write(self, folder: Path, width: int = 0) -> None:
        """Write them as `head.safetensors`; `width` is that of a head without labels."""
        rows = torch.stack([*self.rows.values()]) if self.rows else torch.zeros(0, width + 1)
        write_head([*self.rows], rows[:, :-1], rows[:, -1], folder)


def check_weight(folder: Path, weight: float | None, name: str) -> None:
    """Check that a checkpoint's head can be merged with its weight.

    Means of rows with weights that cancel say nothing of the rows, so that none can be taken out.

    Raises:
        PerdureError: the checkpoint has a head, and its weight is below 0.
    """
    if weight is not None and weight < 0 and (folder / HEAD_WEIGHTS).is_file():
        raise PerdureError(
            f"{name}: weight {weight:g}: the rows of heads are averaged by label, which takes no "
            "weight below 0; give it one of at least 0, or leave it out"
        )


def factor_of(weight: float | None) -> float:
    """Return the weight with which a checkpoint's head counts."""
    return 1.0 if weight is None else weight


def head_of(folder: Path) -> dict[str, Tensor]:
    """Return the rows of a checkpoint's head by label ([width + 1], the bias last), maybe none.

    Raises:
        PerdureError: its file does not load.
    """
    if not (folder / HEAD_WEIGHTS).is_file():
        return {}
    labels, weight, bias = read_head(folder)
    return dict(zip(labels, torch.cat([weight, bias.unsqueeze(1)], dim=1), strict=True))
