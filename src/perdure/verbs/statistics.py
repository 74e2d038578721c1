"""`statistics` measures a checkpoint on rows, for the rules of merging that need it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perdure.data.task import Split, limit_rows
from perdure.data.tokens import Features
from perdure.disk import check_new, fresh_folder
from perdure.errors import NotFiniteError, PerdureError
from perdure.merging.model import Checkpoint, Model
from perdure.merging.rules import find, names
from perdure.merging.statistics import Measured, write_statistics
from perdure.methods.shared.fisher import fisher
from perdure.models.as_is import base_of_adapter
from perdure.models.base import Base
from perdure.say import Say
from perdure.seeds import derive
from perdure.verbs.merge import open_model
from perdure.verbs.whole_model import (
    batch_of,
    features_of,
    file_names,
    load_whole,
    logits_of,
    source_of,
)
from perdure.writing import publish, writing


def statistics(
    name: str,
    split: Split,
    out: str | Path,
    rule_name: str,
    limit: int,
    max_length: int | None,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """Measure a checkpoint, and return what was written. See `perdure.api.statistics`."""
    out, kind = Path(out), _kind(rule_name)
    check_new(out)
    if limit < 1:
        raise PerdureError(f"limit: must be at least 1, got {limit}")
    checkpoint = open_model(name)
    if checkpoint.pack is not None:
        raise PerdureError(
            f"{name}: is a pack; measure its checkpoint, or what `perdure unpack` restores, and "
            "give that folder with the pack"
        )
    hashes = checkpoint.hashes  # before its weights are read, so that they are of these files
    base = load_whole(name, say)
    rows = limit_rows(split.rows, limit, derive(seed, "statistics"))
    where = source_of(split, name, drawn=len(rows) < len(split.rows))
    row_features = features_of(base, rows, max_length, name, where)
    tensors = (_fisher if kind == "fisher" else _grams)(base, row_features, seed)
    tensors = _by_file_names(tensors, checkpoint, base.network)
    bad = next((n for n, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise NotFiniteError(f"{name}: its statistics of {bad} are infinite or not numbers")
    about = {
        "checkpoint": hashes,
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in row_features),
        "rows_sha256": split.sha256,
        "seed": seed,
    }
    unfinished = out.parent / f".{out.name}.new"
    with writing(out, unfinished=unfinished):
        fresh_folder(unfinished)
        written = write_statistics(unfinished, kind, tensors, about)
        publish(unfinished, out)
    return {"statistics": str(out), "of": name, "tensors": len(tensors), **written}


def _kind(rule_name: str) -> Measured:
    """Return what a rule needs.

    Raises:
        PerdureError: there is no such rule, or it needs nothing.
    """
    needs: Any = find(rule_name).needs
    if needs is None:
        rules = [rule for rule in names() if find(rule).needs]
        raise PerdureError(f"{rule_name}: needs no statistics; those that do are {_and(rules)}")
    return needs


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


class _Engine:
    """The part of the engine that measures use, around a model that is not trained."""

    def __init__(self, base: Base):
        self.base = base

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.base.network.parameters())

    def side_gradient(
        self, rows: list[Features], seed: int, loss: Callable[..., Tensor]
    ) -> list[Tensor]:
        """Return the gradient of a loss of the outputs on one row, by parameter."""
        batch = batch_of(self.base, rows[0])
        with torch.enable_grad():
            value = loss(batch, SimpleNamespace(logits=logits_of(self.base, batch)))
            parts = torch.autograd.grad(value, self.parameters, allow_unused=True)
        pairs = zip(parts, self.parameters, strict=True)
        return [torch.zeros_like(p) if part is None else part for part, p in pairs]


def _fisher(base: Base, rows: Sequence[Features], seed: int) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information, by the names of the model's parameters."""
    engine: Any = _Engine(base)
    return fisher(engine, base.network, rows, seed)


@torch.no_grad()
def _grams(base: Base, rows: Sequence[Features], seed: int) -> dict[str, Tensor]:
    """Return E[x x^T] of the inputs x of each linear layer, by the names of their weights.

    The mean is over the tokens that reach the layer. The output layer is left out.
    """
    network: Any = base.network
    head = network.get_output_embeddings()
    layers = {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def added(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()  # [tokens, d_in]
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    hooks = [layer.register_forward_pre_hook(added(name)) for name, layer in layers.items()]
    try:
        for row in rows:
            logits_of(base, batch_of(base, row))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: gram / counts[name] for name, gram in sums.items() if counts[name]}


def _by_file_names(
    tensors: dict[str, Tensor], checkpoint: Checkpoint, model: Any
) -> dict[str, Tensor]:
    """Return statistics by the names of the tensors in the files of the checkpoint or its base."""
    whole = checkpoint.whole
    if whole is None:
        of_base = base_of_adapter(str(checkpoint.folder))
        whole = Model(*of_base, bare=checkpoint.has_head).tensors
    names = file_names(model, tensors, whole.stored, checkpoint.name)
    return {own: tensor for name, tensor in tensors.items() for own in names[name]}
