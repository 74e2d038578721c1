"""Dark experience replay."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.data.tokens import Features
from perdure.errors import PerdureError
from perdure.seeds import derive
from perdure.train.losses import learned_logits, positions_per_row
from perdure.train.memory import Memory
from perdure.train.method import Engine, Family, Keeps, Loss, Method, TaskContext
from perdure.train.parameters import Named, known_labels
from perdure.train.step import rows_of_a_step


Kept = tuple[Tensor, Tensor]  # (logits, their indices in the vocabulary) [places, top] of one row
FIELDS = ("rows", "places", "values", "choices")


class Logits:
    """The stored logits of the rows of a memory, taken when each row first appeared in it.

    Args:
        state: the tensors of an earlier `Logits.state`.
    """

    def __init__(self, state: Named):
        self.state = {name: state[name] for name in FIELDS if name in state}
        self.kept: dict[int, Kept] = {}
        self.keys: dict[int, int] = {}  # by `id` of a row: a memory draws the same objects

    def complete(
        self, tasks: Mapping[str, list[Features]], engine: Engine, top: int, known: int | None
    ) -> None:
        """Compute the logits of the rows that are new, and drop those of rows that are gone."""
        stored, size = _unstacked(self.state), engine.args.per_device_train_batch_size
        by_key: dict[int, Features] = {}
        for task, rows in tasks.items():
            for row in rows:
                self.keys[id(row)] = derive(0, task, str(row["input_ids"]), str(row["labels"]))
                by_key.setdefault(self.keys[id(row)], row)
        new = [key for key in by_key if key not in stored]
        for i in range(0, len(new), size):
            keys = new[i : i + size]
            logits = top_logits([by_key[key] for key in keys], engine, top, known)
            stored.update(zip(keys, logits, strict=True))
        self.kept = {key: stored[key] for key in by_key}
        self.state = _stacked(self.kept)

    def of(self, rows: Sequence[Features]) -> Kept:
        """The stored logits of some rows of the memory, concatenated over their places."""
        return _below([self.kept[self.keys[id(row)]] for row in rows])


def top_logits(rows: list[Features], engine: Engine, top: int, known: int | None) -> Iterator[Kept]:
    """The `top` largest of the first `known` logits, at the places of each row's answer."""
    batch, outputs = engine.look(rows)
    z = learned_logits(outputs.logits, batch["labels"], engine.kind)[:, :known]
    values, choices = z.topk(min(top, z.shape[1]))
    counts = positions_per_row(batch["labels"], engine.kind)
    parts = values.cpu().split(counts), choices.to("cpu", torch.int32).split(counts)
    return zip(*parts, strict=True)


def squares(z: Tensor, values: Tensor, choices: Tensor) -> Tensor:
    """The sum of (z - value)^2 over the stored logits; z [places, vocabulary].

    `values` and `choices` are [places, stored]; a choice of -1 is padding.
    """
    values, choices = values.to(z.device), choices.to(z.device, torch.int64)
    gap = z.gather(1, choices.clamp(min=0)) - values
    return (gap.square() * (choices >= 0)).sum()


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


class DER(Method):
    """Keeps the logits on remembered rows near those that the model had when their task ended.

        g += alpha d/dw mean (z - z_then)^2 + beta d/dw task(other rows)

    where the mean is over the places of the rows' answers and the logits kept of each place, and
    the task loss is on an independent second draw of rows. This is DER++, and DER with beta 0
    (Buzzega et al. 2020, 2004.07211).

    The authors keep all logits, as the model gives them while it learns the row. Here the `top_k`
    largest of a vocabulary are kept (of an encoder, those of the labels that it knew), as the model
    gives them in evaluation mode when the task has ended. So the mean is over fewer and larger
    logits than theirs; the defaults lie in the ranges of their code for images. A row that appears
    in the memory later (a row of general use, for example) gets the logits of the stage before.

    State: 8 bytes for each logit kept, O(remembered rows x places x top_k). Old rows: needed. Cost:
    two more forward and backward passes of `rows` rows a step, one with beta 0; one forward pass of
    the newest task's remembered rows.

    Args:
        alpha: weight of the distance of the logits, >= 0.
        beta: weight of the task loss on remembered rows, >= 0.
        top_k: how many logits are kept at each place of an answer, >= 1.
        rows: remembered rows in a step and draw; null is as many as a full step of the training
            has.
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
        self.others = Memory(context.memory.tasks, derive(context.seed, "others"))
        return super().begin_task(model, context)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.count = self.rows or rows_of_a_step(args)
        if not self.complete:  # the first step: the weights are those of the stage before
            encoder, labels = self.engine.kind == "encoder", self.labels
            known = None if labels is None else int(labels)
            top = sys.maxsize if encoder else self.top_k
            self.logits.complete(self.context.memory.tasks, self.engine, top, known)
            self.complete = True

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
        """The mean of (z - z_then)^2, as a loss to be summed over the micro-batches of the rows.

        The micro-batches must come in the order of the rows.
        """
        values, choices = self.logits.of(rows)
        count, start = (choices >= 0).sum(), 0

        def loss(batch: dict[str, Tensor], outputs: Any) -> Tensor:
            nonlocal start
            z = learned_logits(outputs.logits, batch["labels"], self.engine.kind)
            here = slice(start, start + len(z))
            start = here.stop
            return squares(z, values[here], choices[here]) / count.to(z.device)

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
