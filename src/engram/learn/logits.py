"""The logits that a model once gave to remembered rows: kept, stored, and found again by the row.

rows      [rows]          what tells a row: a hash of its task and its tokens
places    [rows]          how many places of an answer it has
values    [places, k]     the logits kept at each place
choices   [places, k]     what they are the logits of; -1 fills up where fewer are kept
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engram.data.tokens import IGNORED, Kind
from engram.learn.methods.base import Engine
from engram.learn.precision import learned_places
from engram.learn.pull import Named
from engram.seeds import derive


Row = dict[str, Any]
Kept = tuple[Tensor, Tensor]  # values and choices of one row
FIELDS = ("rows", "places", "values", "choices")


class Logits:
    """What is kept of the rows of a memory, each as it was when it first was looked at."""

    def __init__(self, state: Named):
        self.state = {name: state[name] for name in FIELDS if name in state}
        self.kept: dict[int, Kept] = {}
        self.keys: dict[int, int] = {}  # by the identity of a row: a memory draws its own objects

    def complete(
        self, tasks: Mapping[str, list[Row]], engine: Engine, top: int, known: int | None
    ) -> None:
        """Look at the rows that are new, and drop what is kept of rows that are gone."""
        old, size = _unstacked(self.state), engine.args.per_device_train_batch_size
        by_key: dict[int, Row] = {}
        for task, rows in tasks.items():
            for row in rows:
                self.keys[id(row)] = derive(0, task, str(row["input_ids"]), str(row["labels"]))
                by_key.setdefault(self.keys[id(row)], row)
        new = [key for key in by_key if key not in old]
        for i in range(0, len(new), size):
            keys = new[i : i + size]
            seen = looked_at([by_key[key] for key in keys], engine, top, known)
            old.update(zip(keys, seen, strict=True))
        self.kept = {key: old[key] for key in by_key}
        self.state = _stacked(self.kept)

    def of(self, rows: Sequence[Row]) -> Kept:
        """What is kept of rows of that memory, one below the other."""
        return _below([self.kept[self.keys[id(row)]] for row in rows])


def looked_at(rows: list[Row], engine: Engine, top: int, known: int | None) -> Iterator[Kept]:
    """The `top` largest logits at the places of each row's answer, of the first `known` choices."""
    batch, outputs = engine.look(rows)
    z = learned_places(outputs.logits, batch["labels"], engine.kind)[:, :known]
    values, choices = z.topk(min(top, z.shape[1]))
    counts = _places(batch["labels"], engine.kind)
    parts = values.cpu().split(counts), choices.to("cpu", torch.int32).split(counts)
    return zip(*parts, strict=True)


def squares(z: Tensor, values: Tensor, choices: Tensor) -> Tensor:
    """The sum of (z - value)^2 over what is kept; z [places, vocabulary]."""
    values, choices = values.to(z.device), choices.to(z.device, torch.int64)
    gap = z.gather(1, choices.clamp(min=0)) - values
    return (gap.square() * (choices >= 0)).sum()


def _places(labels: Tensor, kind: Kind) -> list[int]:
    """How many places of an answer each row has."""
    labels = labels[:, 1:] if kind == "causal" else labels
    return labels.ne(IGNORED).reshape(len(labels), -1).sum(1).tolist()


def _below(kept: Sequence[Kept]) -> Kept:
    width = max(choices.shape[1] for _, choices in kept)

    def wide(tensor: Tensor, fill: int) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=fill)

    return torch.cat([wide(v, 0) for v, _ in kept]), torch.cat([wide(c, -1) for _, c in kept])


def _stacked(kept: Mapping[int, Kept]) -> Named:
    if not kept:
        return {}
    values, choices = _below(list(kept.values()))
    counts = torch.tensor([len(v) for v, _ in kept.values()])
    rows = torch.tensor(list(kept))
    return {"rows": rows, "places": counts, "values": values, "choices": choices}


def _unstacked(state: Named) -> dict[int, Kept]:
    if not state:
        return {}
    counts = state["places"].tolist()
    parts = (state[name].cpu().split(counts) for name in ("values", "choices"))
    return dict(zip(state["rows"].tolist(), zip(*parts, strict=True), strict=True))
