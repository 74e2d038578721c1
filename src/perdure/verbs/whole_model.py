"""A checkpoint as one whole model in fp32 that is asked without a Trainer."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from perdure.data.columns import is_chat
from perdure.data.task import Split
from perdure.data.tokens import Features, features
from perdure.errors import NotFiniteError, PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, stage_folder
from perdure.measure.predict import MAX_LENGTH
from perdure.models.as_is import load_as_is
from perdure.models.base import Base
from perdure.models.batch import padded
from perdure.models.classifier import Classifier
from perdure.models.head import predicting
from perdure.models.merging import merge
from perdure.models.whole_weights import is_pooler
from perdure.say import Say


def load_whole(name: str, say: Say) -> Base:
    """Load a checkpoint as one whole model in fp32, all of whose weights have gradients.

    An encoder has its head, whose weights have none.
    """
    if (Path(name) / "lineage.yaml").is_file():
        lineage = Lineage(name)
        base = base_at(lineage, lineage.stages[-1])
        base.to_accelerator()
    else:
        base = load_as_is(str(stage_folder(name)), say, with_head=True)
    network: Any = base.network
    network.float()
    if isinstance(network, PeftModel):
        network = merge(network)
    if isinstance(base.model, Classifier):
        base.model.backbone = network
    else:
        base.model = network
    base.model.requires_grad_(False)
    network.requires_grad_(True)
    base.model.eval()
    return base


def source_of(split: Split, name: str, drawn: bool = False) -> str:
    """Return how rows are named in an error: by their file, or by the model that is asked."""
    path = (split.source or {}).get("path")
    where = str(path) if path else f"{name} rows"
    return f"{where}, drawn rows" if drawn else where


def features_of(
    base: Base, rows: Sequence[Any], max_length: int | None, name: str, where: str
) -> list[Features]:
    """Tokenize rows as they are trained.

    Args:
        base: the model.
        rows: the rows.
        max_length: the most tokens of a row; None is 512, or the positions of the model.
        name: the name of the model, for errors.
        where: the name of the rows, for errors.

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
        labels=base.labels,
        where=where,
        cache=base.cache,
    )
    return row_features


def batch_of(base: Base, *rows: Features) -> dict[str, Tensor]:
    """Return rows as one batch: a row alone without padding, others padded on the right."""
    device = next(base.model.parameters()).device
    ids, mask = padded([row["input_ids"] for row in rows], base.tokenizer)
    if base.kind == "encoder":
        labels = torch.tensor([row["labels"] for row in rows])
    else:
        own = [torch.tensor(list(row["labels"])) for row in rows]
        labels = pad_sequence(own, batch_first=True, padding_value=-100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def logits_of(base: Base, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits that predict a label: [positions, tokens], of an encoder [1, labels]."""
    if base.kind == "encoder":
        logits = base.model(batch["input_ids"], batch["attention_mask"]).logits
    else:
        logits = base.model(**batch, use_cache=False).logits
        logits = logits[predicting(batch["labels"], base.kind)]
    if not logits.isfinite().all():
        raise NotFiniteError(f"{base.name}: its logits are infinite or not numbers")
    return logits


def file_names(
    model: Any, names: Iterable[str], stored: Collection[str], where: str
) -> dict[str, list[str]]:
    """Return under which names weights of a model are in its files.

    Files may leave out the prefix of the model, as those of GPT-2 do, may have tied weights under
    both of their names, and those of an encoder may lack its pooler, which has no name then.

    Args:
        model: the model.
        names: the names of the weights in the model.
        stored: the names of the tensors in the files.
        where: the name of the checkpoint, for the error line.

    Raises:
        PerdureError: transformers gives a weight another name than the files do.
    """
    prefix = f"{model.base_model_prefix}."
    tied = dict(model.get_expanded_tied_weights_keys(all_submodels=True))
    result = {}
    for name in names:
        others = [name, name.removeprefix(prefix), f"{prefix}{name}"]
        others += [target for target, source in tied.items() if source == name]
        result[name] = [other for other in dict.fromkeys(others) if other in stored]
        if not result[name] and not is_pooler(name):
            raise PerdureError(
                f"{where}: transformers names its weights otherwise than its files do, such as "
                f"{name}, so that what is measured of them belongs to no tensor; merge by another "
                "rule"
            )
    return result
