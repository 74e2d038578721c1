"""Dark experience replay."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.data.tokens import Features
from perdure.errors import PerdureError
from perdure.seeds import derive
from perdure.train.losses import positions_per_row
from perdure.train.memory import Memory
from perdure.train.method import Engine, Family, Keeps, Loss, Method, TaskContext
from perdure.train.parameters import Named, known_labels, old_labels, snapshot
from perdure.train.step import rows_of_a_step


# One row's logits, and their indices in the vocabulary, both [positions, top].
RowLogits = tuple[Tensor, Tensor]
FIELDS = ("rows", "places", "values", "choices")


def _key(task: str, row: Features) -> int:
    """Return the key of a row of a task: a hash of its token ids and labels as text."""
    parts = (row["input_ids"], row["labels"])
    texts = (str(part if isinstance(part, int) else list(part)) for part in parts)
    return derive(0, task, *texts)


class Logits:
    """The stored logits of remembered rows, computed when each row first appears in the memory.

    Args:
        state: the tensors of an earlier `Logits.state`.
    """

    def __init__(self, state: Named):
        self.state = {name: state[name] for name in FIELDS if name in state}
        self.by_key: dict[int, RowLogits] = {}
        self.keys: dict[
            int, int
        ] = {}  # by `id` of the row: the memory always returns the same objects

    def complete(
        self, tasks: Mapping[str, list[Features]], engine: Engine, top: int, labels: int | None
    ) -> None:
        """Compute the logits of new rows, and drop those of rows that have left the memory."""
        stored, size = _unstacked(self.state), engine.args.per_device_train_batch_size
        rows_by_key: dict[int, Features] = {}
        for task, rows in tasks.items():
            for row in rows:
                self.keys[id(row)] = _key(task, row)
                rows_by_key.setdefault(self.keys[id(row)], row)
        new = [key for key in rows_by_key if key not in stored]
        for i in range(0, len(new), size):
            keys = new[i : i + size]
            logits = top_logits([rows_by_key[key] for key in keys], engine, top, labels)
            stored.update(zip(keys, logits, strict=True))
        self.by_key = {key: stored[key] for key in rows_by_key}
        self.state = _stacked(self.by_key)

    def of(self, rows: Sequence[Features]) -> RowLogits:
        """The stored logits of some remembered rows, concatenated over their positions."""
        return _concatenated([self.by_key[self.keys[id(row)]] for row in rows])


def top_logits(
    rows: list[Features], engine: Engine, top: int, labels: int | None
) -> Iterator[RowLogits]:
    """The `top` largest logits at each position of each row's answer.

    Of an encoder, only the first `labels` logits are used.
    """
    batch, outputs = engine.look(rows)
    z = outputs.logits.float()[:, :labels]
    values, choices = z.topk(min(top, z.shape[1]))
    counts = positions_per_row(batch["labels"], engine.kind)
    parts = values.cpu().split(counts), choices.to("cpu", torch.int32).split(counts)
    return zip(*parts, strict=True)


def squares(z: Tensor, values: Tensor, choices: Tensor) -> Tensor:
    """The sum of (z - value)^2 over the stored logits; z is [positions, vocabulary].

    `values` and `choices` are [positions, stored]; a choice of -1 is padding.
    """
    values, choices = values.to(z.device), choices.to(z.device, torch.int64)
    difference = z.gather(1, choices.clamp(min=0)) - values
    return (difference.square() * (choices >= 0)).sum()


def _concatenated(rows: Sequence[RowLogits]) -> RowLogits:
    """The logits of all rows, padded to the same number of logits at each position."""
    width = max(choices.shape[1] for _, choices in rows)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    values = torch.cat([padded(values, 0) for values, _ in rows])
    return values, torch.cat([padded(choices, -1) for _, choices in rows])


def _stacked(by_key: Mapping[int, RowLogits]) -> Named:
    """The logits of all rows as tensors to save."""
    if not by_key:
        return {}
    values, choices = _concatenated(list(by_key.values()))
    counts = torch.tensor([len(values) for values, _ in by_key.values()])
    rows = torch.tensor(list(by_key))
    return {"rows": rows, "places": counts, "values": values, "choices": choices}


def _unstacked(state: Named) -> dict[int, RowLogits]:
    """The inverse of `_stacked`."""
    if not state:
        return {}
    counts = state["places"].tolist()
    parts = (state[name].cpu().split(counts) for name in ("values", "choices"))
    return dict(zip(state["rows"].tolist(), zip(*parts, strict=True), strict=True))


class DER(Method):
    """Keeps the logits on remembered rows near those that the model had when their task ended.

        g += alpha d/dw mean (z - z_then)^2 + beta d/dw task(other rows)

    where the mean is over the positions of the rows' answers and the logits stored for each
    position, and the task loss is on an independent second draw of rows. This is DER++, and DER
    with beta 0 (Buzzega et al. 2020, 2004.07211).

    The authors store all logits, as the model computes them while it learns the row. Here the
    `top_k` largest of the vocabulary are stored (for an encoder, those of the labels that it had),
    computed in evaluation mode when the task has ended. The mean is therefore over fewer and larger
    logits than theirs; the defaults are within the ranges of their code for images. A row that
    enters the memory later (for example a general row) gets the logits of the previous stage.

    State: 8 bytes for each stored logit, O(remembered rows x positions x top_k); until the first
    step of a task also a copy of the trained weights. Old rows: needed. Cost: two more forward and
    backward passes on `rows` rows in each step, or one if beta is 0; one forward pass on the newest
    task's remembered rows.

    Args:
        alpha: the weight of the distance of the logits, >= 0.
        beta: the weight of the task loss on remembered rows, >= 0.
        top_k: how many logits are stored at each position of an answer, >= 1.
        rows: the number of remembered rows in each of the two draws of a step; null uses that of a
            full training step.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/2004.07211"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"alpha": 0.0, "beta": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.7, second_loss=0.3)

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.5, top_k: int = 32, rows: int | None = None
    ):
        if min(alpha, beta) < 0 or top_k < 1 or (rows is not None and rows < 1):
            raise PerdureError(
                "der: needs alpha and beta >= 0, top_k and rows >= 1, got "
                f"{alpha}, {beta}, {top_k} and {rows}"
            )
        self.alpha, self.beta, self.top_k, self.rows = alpha, beta, top_k, rows

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.load_state_dict(context.state)
        self.labels = old_labels(context)
        self.others = Memory(context.memory.tasks, derive(context.seed, "others"))
        self.previous: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.count = self.rows or rows_of_a_step(args)
        if not self.complete:  # the first step; the engine was not there in `begin_task`
            with self._previous_stage():
                self.logits.complete(
                    self.context.memory.tasks,
                    self.engine,
                    top=sys.maxsize if self.engine.kind == "encoder" else self.top_k,
                    labels=None if self.labels is None else int(self.labels),
                )
            self.complete, self.previous = True, {}

    @contextmanager
    def _previous_stage(self) -> Iterator[None]:
        """A context in which the model has the weights with which the previous stage ended.

        Another method of the list may have changed them for the start of the task.
        """
        parameters = dict(self.engine.base.model.named_parameters())
        present = {name: parameters[name].detach().clone() for name in self.previous}
        with torch.no_grad():
            for name, weights in self.previous.items():
                parameters[name].copy_(weights)
        yield
        with torch.no_grad():
            for name, weights in present.items():
                parameters[name].copy_(weights)

    def edit_gradients(self, model: nn.Module) -> None:
        if not self.context.memory:
            return
        seed = derive(self.context.seed, "der", self.step)
        rows = self.context.memory.step(self.step, self.count)
        self._add(self.alpha, self.engine.side_gradient(rows, seed, self._distance(rows)))
        if self.beta:
            rows = self.others.step(self.step, self.count)
            self._add(self.beta, self.engine.side_gradient(rows, seed))

    def _distance(self, rows: list[dict[str, Any]]) -> Loss:
        """The mean of (z - z_then)^2 over the rows, as a loss of one micro-batch after the other.

        The losses of the micro-batches add up to the mean. They must come in the order of the rows.
        """
        values, choices = self.logits.of(rows)
        count, start = (choices >= 0).sum(), 0

        def loss(batch: dict[str, Tensor], outputs: Any) -> Tensor:
            nonlocal start
            z = outputs.logits.float()
            positions = slice(start, start + len(z))
            start = positions.stop
            return squares(z, values[positions], choices[positions]) / count.to(z.device)

        return loss

    @torch.no_grad()
    def _add(self, weight: float, gradient: list[Tensor]) -> None:
        for p, g in zip(self.engine.parameters, gradient, strict=True):
            if p.grad is not None:
                p.grad.add_(g, alpha=weight)

    def end_task(self, model: nn.Module) -> None:
        self.labels = known_labels(model).get("labels")

    def state_dict(self) -> dict[str, Tensor]:
        return self.logits.state | ({} if self.labels is None else {"labels": self.labels})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.logits, self.labels = Logits(state), state.get("labels")
        self.complete = False
