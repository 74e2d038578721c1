"""`statistics` measures a checkpoint on rows, for the rules of merging that need it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perdure.data.columns import is_chat
from perdure.data.task import Split, limit_rows
from perdure.data.tokens import Features, features
from perdure.disk import fresh_folder, usual_modes
from perdure.errors import NotFiniteError, PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.measure.predict import MAX_LENGTH
from perdure.merging.checkpoint import Tensors, model_files, model_folder
from perdure.merging.model import Checkpoint
from perdure.merging.rules import find, names
from perdure.merging.statistics import Measured, write_statistics
from perdure.methods.shared.fisher import fisher
from perdure.models.as_is import base_of_adapter, load_as_is
from perdure.models.base import Base
from perdure.models.head import predicting
from perdure.models.merging import merge
from perdure.say import Say
from perdure.seeds import derive
from perdure.verbs.merge import is_lineage, open_model
from perdure.writing import sync, writing


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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PerdureError(f"{out}: exists and is not empty; give a new folder")
    if limit < 1:
        raise PerdureError(f"limit: must be at least 1, got {limit}")
    checkpoint = open_model(name)
    hashes = checkpoint.hashes  # before its weights are read, so that they are of these files
    base = _loaded(name, say)
    rows = limit_rows(split.rows, limit, derive(seed, "statistics"))
    row_features = _features(base, rows, max_length, name)
    tensors = (_fisher if kind == "fisher" else _grams)(base, row_features, seed)
    tensors = _by_file_names(tensors, checkpoint, base)
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
        usual_modes(unfinished)
        for path in [*unfinished.iterdir(), unfinished]:
            sync(path)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
        sync(out.parent)
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


def _loaded(name: str, say: Say) -> Base:
    """Load a checkpoint as one whole model in fp32, all of whose weights have gradients."""
    if is_lineage(name):
        lineage = Lineage(name)
        base = base_at(lineage, lineage.stages[-1])
        if base.kind == "encoder":
            raise PerdureError(f"{name}: statistics are those of models that write, not encoders")
        base.to_accelerator()
    else:
        base = load_as_is(name, say)
    network: Any = base.network
    network.float()
    if isinstance(network, PeftModel):
        network = merge(network)
    network.requires_grad_(True)
    base.model = network.eval()
    return base


def _features(base: Base, rows: Sequence[Any], max_length: int | None, name: str) -> list[Features]:
    """Tokenize rows as they are trained.

    Raises:
        PerdureError: a row does not fit, or the length is more than the model takes.
    """
    positions = base.limits.positions
    length = min(MAX_LENGTH, positions or MAX_LENGTH) if max_length is None else max_length
    if length < 1 or (positions and length > positions):
        raise PerdureError(
            f"max_length: must be at least 1 and at most the {positions} positions of {name}, got "
            f"{length}"
        )
    if not base.tokenizer.chat_template and any(map(is_chat, rows)):
        raise PerdureError(f"{name}: has no chat template, and the rows are conversations")
    row_features, _ = features(
        rows,
        base.tokenizer,
        kind=base.kind,
        max_length=length,
        max_completion_length=length,
        labels=None,
        where=f"{name} rows",
        cache=base.cache,
    )
    return row_features


class _Engine:
    """The part of the engine that measures use, around a model that is not trained."""

    def __init__(self, base: Base):
        self.base = base

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.base.model.parameters())

    def side_gradient(
        self, rows: list[Features], seed: int, loss: Callable[..., Tensor]
    ) -> list[Tensor]:
        """Return the gradient of a loss of the outputs on one row, by parameter."""
        batch = _batch(self.base, rows[0])
        with torch.enable_grad():
            outputs = self.base.model(**batch, use_cache=False)
            outputs.logits = outputs.logits[predicting(batch["labels"], self.base.kind)]
            if not outputs.logits.isfinite().all():
                raise NotFiniteError(f"{self.base.name}: its logits are infinite or not numbers")
            value = loss(batch, outputs)
            parts = torch.autograd.grad(value, self.parameters, allow_unused=True)
        pairs = zip(parts, self.parameters, strict=True)
        return [torch.zeros_like(p) if part is None else part for part, p in pairs]


def _batch(base: Base, row: Features) -> dict[str, Tensor]:
    """Return a row as a batch of its own, without padding."""
    device = next(base.model.parameters()).device
    ids, labels = (torch.tensor([list(row[key])], device=device) for key in ("input_ids", "labels"))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _fisher(base: Base, rows: Sequence[Features], seed: int) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information, by the names of the model's parameters."""
    engine: Any = _Engine(base)
    return fisher(engine, base.model, rows, seed)


@torch.no_grad()
def _grams(base: Base, rows: Sequence[Features], seed: int) -> dict[str, Tensor]:
    """Return E[x x^T] of the inputs x of each linear layer, by the names of their weights.

    The mean is over the tokens that reach the layer. The output layer is left out.
    """
    model: Any = base.model
    head = model.get_output_embeddings()
    layers = {
        f"{name}.weight": module
        for name, module in model.named_modules()
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
            model(**_batch(base, row), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: gram / counts[name] for name, gram in sums.items() if counts[name]}


def _by_file_names(
    tensors: dict[str, Tensor], checkpoint: Checkpoint, base: Base
) -> dict[str, Tensor]:
    """Return statistics by the names of the tensors in the files of the checkpoint or its base.

    Files may leave out the prefix of the model, as those of GPT-2 do, and may have tied weights
    under both of their names.

    Raises:
        PerdureError: transformers gives the weights other names than the files do.
    """
    model: Any = base.model
    prefix, whole = f"{model.base_model_prefix}.", checkpoint.whole
    if whole is None:
        whole = Tensors(model_files(model_folder(*base_of_adapter(str(checkpoint.folder)))))
    tied = dict(model.get_expanded_tied_weights_keys(all_submodels=True))
    named, unknown = {}, []
    for name, tensor in tensors.items():
        others = [name, name.removeprefix(prefix), f"{prefix}{name}"]
        others += [target for target, source in tied.items() if source == name]
        found = [other for other in dict.fromkeys(others) if other in whole.stored]
        named |= dict.fromkeys(found, tensor)
        unknown += [] if found else [name]
    if unknown:
        raise PerdureError(
            f"{checkpoint.name}: transformers names its weights otherwise than its files do, such "
            f"as {unknown[0]}, so that statistics of them mean nothing; merge by another rule"
        )
    return named
