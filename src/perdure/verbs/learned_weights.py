"""The weights of checkpoints that a rule learns on rows, before they are folded."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from perdure.data.rows import answer
from perdure.data.task import Split
from perdure.errors import NotFiniteError, PerdureError, nearest
from perdure.measure.batches import feature_batches
from perdure.merging.magnitude import dot
from perdure.merging.model import Checkpoint, Model, opened
from perdure.merging.rule import Rule
from perdure.merging.rules.frank_wolfe import Trial
from perdure.merging.streamed import Job, in_bytes, towards
from perdure.merging.survey import Survey
from perdure.models.base import Base, load_pretrained, read_base
from perdure.models.classifier import Classifier
from perdure.say import Say
from perdure.train.losses import count_items, token_loss
from perdure.train.step import task_loss
from perdure.verbs.whole_model import batch_of, features_of, file_names, source_of


BATCH = 8  # the most rows of a batch


@dataclass(frozen=True)
class Asked:
    """How rows are asked while weights are learned.

    Args:
        rows: the rows whose loss is lowered.
        max_length: the most tokens of a row; None is 512, or the positions of the model.
        head: of an encoder, the row of each label, [width + 1], the bias last. It stays as it is,
            because the rule works on what checkpoints have in common.
        groups: of an encoder, the labels of each task. A row is answered among those of its tasks.
    """

    rows: Split
    max_length: int | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Sequence[Collection[str]] = ()

    def among(self, label: str) -> set[str]:
        """Return the labels among which a row with this answer is answered."""
        return {other for group in self.groups if label in group for other in group}


def check_rows(rule: Rule, weights: list[float | None], rows: Split | None) -> None:
    """Check that there are rows to learn weights on if some are to be learned, and only then.

    Raises:
        PerdureError: it is otherwise.
    """
    open_weights = any(weight is None for weight in weights)
    if rows is not None and not rule.learns:
        raise PerdureError(f"{rule.name}: learns no weights; leave --rows out")
    if rule.learns and rows is None and open_weights:
        raise PerdureError(
            f"{rule.name}: learns the weights of checkpoints on rows; give --rows FILE, or a "
            "weight for each checkpoint"
        )


def learned(
    job: Job, asked: Asked, max_memory: int | None, say: Say
) -> tuple[list[Checkpoint], list[list[Trial]]]:
    """Return the checkpoints with their weights, and for each the steps that led to its weight.

    A weight that was given stays, with no steps.

    Args:
        job: what is merged, after its survey; nothing is written.
        asked: the rows whose loss is lowered.
        max_memory: the most memory for weights, in bytes.
        say: called with what it takes.

    Raises:
        PerdureError: the memory is not enough, a row does not fit, or no checkpoint of an encoder
            knows its label.
    """
    assert job.survey is not None
    needed = 8 * sum(prod(place.shape) for place in job.base.places())  # fp32, and its gradient
    line = (
        f"learning the weights takes {in_bytes(needed)} of memory for the model in fp32 and its "
        "gradient"
    )
    if max_memory is not None and needed > max_memory:
        raise PerdureError(
            f"{line}, and max_memory is {in_bytes(max_memory)}; allow more, or give a weight for "
            "each checkpoint"
        )
    say(f"{line}, beside the plan")
    subject = _Subject(job.base, asked)
    checkpoints: list[Checkpoint] = []
    searches: list[list[Trial]] = []
    for checkpoint in job.checkpoints:
        weight, trials = checkpoint.weight, []
        if weight is None:
            norms = job.survey.norms[: len(checkpoints)]
            so_far = replace(job, checkpoints=checkpoints, survey=Survey(0.0, norms, []))
            rule: Any = job.rule
            weight, trials = rule.search(_Segment(subject, so_far, checkpoint).measure)
        checkpoints.append(replace(checkpoint, weight=weight))
        searches.append(trials)
    return checkpoints, searches


class _Subject:
    """The base's network, whose weights are set, and the rows that it is asked.

    Args:
        model: the base.
        asked: the rows.
    """

    def __init__(self, model: Model, asked: Asked):
        info = read_base(model.name, model.revision)
        if info.kind == "encoder" and not asked.head:
            raise PerdureError(
                f"{model.name}: no checkpoint has the head of an encoder, so that rows have no "
                "loss; merge stages of a lineage, or give a weight for each checkpoint"
            )
        network = load_pretrained(
            model.name, info.kind, revision=model.revision, dtype=torch.float32
        )
        network.requires_grad_(True)
        network.config.use_cache = False  # no keys and values are kept for a next token
        answering: nn.Module = network.eval()
        if info.kind == "encoder":
            head = torch.stack([*asked.head.values()])
            answering = Classifier(answering, info.config.hidden_size)
            answering.set_head(head[:, :-1], head[:, -1], [*asked.head])
        self.base = Base(model.name, info.kind, answering, info.tokenizer, info.limits, info.cache)
        self.base.to_accelerator()
        self.where = source_of(asked.rows, model.name)
        rows = asked.rows.rows
        self.rows = features_of(self.base, rows, asked.max_length, model.name, self.where)
        self.choices = self._choices(asked) if info.kind == "encoder" else []
        self.batches = [
            (indices, batch_of(self.base, *(self.rows[index] for index in indices)))
            for indices in feature_batches(self.base, self.rows, BATCH)
        ]
        self.count = sum(int(count_items(batch, info.kind)) for _, batch in self.batches)
        parameters = dict(network.named_parameters())
        names = file_names(network, parameters, model.tensors.stored, model.name)
        # A tied weight that is in the files twice counts once.
        self.parameters = {names[name][0]: p for name, p in parameters.items() if names[name]}

    def _choices(self, asked: Asked) -> list[list[int]]:
        """Return the numbers of the labels among which each row is answered.

        Raises:
            PerdureError: a row has an answer that only a head knows, and no task.
        """
        choices = []
        for number, row in enumerate(asked.rows.rows, start=1):
            label = answer(row).strip()
            among = asked.among(label)
            if not among:
                known = sorted({other for group in asked.groups for other in group})
                raise PerdureError(
                    f"{self.where}, row {number}: {label!r} is an answer of no task, only of a "
                    f"head; {nearest(label, known)}, or declare it with --option"
                )
            choices.append([index for index, other in enumerate(asked.head) if other in among])
        return choices

    def gradient(self) -> float:
        """Set `.grad` to the gradient of the mean loss of the rows' labels, and return that loss.

        Raises:
            NotFiniteError: the loss is infinite or not a number.
        """
        self.base.model.zero_grad()
        total = 0.0
        for indices, batch in self.batches:
            loss = self._loss(indices, batch)
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise NotFiniteError(
                f"{self.base.name}: the loss on the rows of --rows is infinite or not a number"
            )
        return total

    def _loss(self, indices: Sequence[int], batch: dict[str, Tensor]) -> Tensor:
        """Return the share of some rows in the mean loss."""
        model, kind = self.base.model, self.base.kind
        if not self.choices:
            return task_loss(model, model, batch, kind, num_items=self.count)[0]
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        among = torch.full_like(logits, -torch.inf)
        for place, index in enumerate(indices):
            among[place, self.choices[index]] = 0
        return token_loss(logits + among, batch["labels"], num_items=self.count, kind=kind)


class _Segment:
    """The segment from what was merged so far to a checkpoint.

    Args:
        subject: the network and the rows.
        so_far: what was merged before.
        checkpoint: the checkpoint.
    """

    def __init__(self, subject: _Subject, so_far: Job, checkpoint: Checkpoint):
        self.subject, self.so_far, self.checkpoint = subject, so_far, checkpoint

    def measure(self, weight: float) -> tuple[float, float]:
        """Return the loss at a share of the checkpoint, and its derivative in the share.

        What is needed of the files is read piece by piece, twice.
        """
        with torch.no_grad():
            for parameter, start, direction in self._pieces():
                parameter.copy_(start + weight * direction)
        loss = self.subject.gradient()
        slope = 0.0
        for parameter, _, direction in self._pieces(of_gradient=True):
            slope += dot(parameter.cpu(), direction)
        return loss, slope

    def _pieces(self, of_gradient: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield pieces of the parameters, or of their gradients, with where the segment begins.

        The third tensor is the direction in which it leads.
        """
        job = self.so_far
        with opened(job.base, [*job.checkpoints, self.checkpoint]), ExitStack() as stack:
            if job.state is not None:
                stack.enter_context(job.state.open())
            for place in job.base.places():
                parameter: Any = self.subject.parameters.get(place.tensor)
                tensor = parameter.grad if of_gradient and parameter is not None else parameter
                if tensor is None:  # a buffer, or a weight that no row reaches
                    continue
                for piece, start, direction in towards(job, self.checkpoint, place):
                    yield tensor[piece.index] if piece.index else tensor, start, direction
