"""Recurrent-KIF: recurrent knowledge identification and fusion."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from engram.errors import EngramError
from engram.learn import importance
from engram.learn.adam import Momentum, adam_tensors, after_fusion, load_adam_tensors
from engram.learn.importance import FusionTable, Importance, flatten, important
from engram.learn.methods.base import Family, Method, TaskContext
from engram.learn.presets import OPEN, RECURRENT_KIF, TRAINING
from engram.seeds import derive


@dataclass(eq=False)
class RecurrentKIF(Method):
    """Finds what the new and the old tasks need, again and again, and fuses both updates by it.

    A round: Q = `inner_steps` optimizer steps on the new task take the weights from t0 to tQ, then
    S = `outer_steps` steps on memory, by an AdamW of their own, take them to tS. Each side smooths
    the sensitivity |w g| of its gradients (before clipping, at the weights they were taken at) over
    its steps; the weights above the global `quantile` are important to that side. Then

        t0' = t0 + w_in (tQ - t0) + w_out (tS - tQ),   (w_in, w_out) = fusion[important to whom]

    and the next round starts from t0'. The inner map starts afresh each round, the outer one lasts
    for the task. The last, shorter round is fused too. The first task is plain fine-tuning.

    State: t0, two maps (four with the uncertainty) and the outer optimizer's two moments, each of
    the trainable weights' size, O(1) in tasks; after the task only the shares of the four cases
    are kept. Old rows: needed. Cost: S/Q more steps, 1.5 times the passes of `sequential`.

    Args:
        inner_steps: Q, steps on the new task in a round.
        outer_steps: S, steps on memory in a round.
        quantile: share of the weights that are not important, 0 to 1.
        fusion: (w_in, w_out) for weights important to `both`, `inner`, `outer` or `neither`;
            null is the paper's.
        score: `sensitivity`, or `sensitivity_uncertainty` (times the smoothed deviation).
        beta_inner: smoothing of the inner map, 0 (none) to 1.
        beta_outer: smoothing of the outer map.
        beta_uncertainty: smoothing of the deviation of both maps.
        outer_learning_rate: of the memory steps; null is the training's own.
        outer_schedule: `inner` (in proportion to the training's schedule) or `constant`.
        outer_batch_size: remembered rows a memory step; null is the training's batch.
        outer_optimizer: `own`, or `shared`: the memory steps by the training's optimizer and at its
            rate, with its moments mixed up. A control, this is a fault of the released code.
        momentum: of the inner optimizer at a fusion: `keep`, `reset`, or `scale` (the first moment
            by the share of tQ - t0 that was kept).
    """

    family: ClassVar[Family] = "recurrent fusion"
    paper: ClassVar[str] = "https://huggingface.co/papers/2502.17510"
    presets: ClassVar[dict[str, dict[str, Any]]] = RECURRENT_KIF
    left_open: ClassVar[dict[str, dict[str, str]]] = OPEN
    trained_with: ClassVar[dict[str, dict[str, Any]]] = TRAINING
    neutral: ClassVar[dict[str, Any]] = {"fusion": dict.fromkeys(FusionTable._fields, (1, 0))}

    inner_steps: int = 8
    outer_steps: int = 4
    quantile: float = 0.8
    fusion: dict = None  # type: ignore[assignment]  # the paper's
    score: Literal["sensitivity", "sensitivity_uncertainty"] = "sensitivity"
    beta_inner: float = 0.55
    beta_outer: float = 0.55
    beta_uncertainty: float = 0.55
    outer_learning_rate: float | None = None
    outer_schedule: Literal["inner", "constant"] = "inner"
    outer_batch_size: int | None = None
    outer_optimizer: Literal["own", "shared"] = "own"
    momentum: Momentum = "keep"

    def __post_init__(self):
        table = self.fusion or RECURRENT_KIF["paper"]["fusion"]
        if set(table) != set(FusionTable._fields):
            cases = ", ".join(FusionTable._fields)
            raise EngramError(f"recurrent_kif: fusion takes the cases {cases}, got {sorted(table)}")
        self.table = FusionTable(**{case: (float(w[0]), float(w[1])) for case, w in table.items()})
        if self.inner_steps < 1 or self.outer_steps < 0 or not 0 <= self.quantile <= 1:
            raise EngramError(
                "recurrent_kif: needs inner_steps >= 1, outer_steps >= 0 and 0 <= quantile <= 1, "
                f"got {self.inner_steps}, {self.outer_steps} and {self.quantile}"
            )

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.shares: list[Tensor] = []  # of the four cases, an entry a round
        self.running = False
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.running = bool(self.context.memory)
        self.parameters = self.engine.parameters
        rate = self.outer_learning_rate
        self.rate = args.learning_rate if rate is None else rate
        self.rows = self.outer_batch_size or (
            args.per_device_train_batch_size * args.gradient_accumulation_steps
        )
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer: Any = optimizer
        if self.outer_optimizer == "own":
            self.optimizer = torch.optim.AdamW(
                self.parameters, self.rate, betas, args.adam_epsilon, weight_decay=0
            )
        self.start = flatten(self.parameters)
        self.inner = Importance.zeros(self.start, self.score)
        self.outer = Importance.zeros(self.start, self.score)

    def edit_gradients(self, model: nn.Module) -> None:
        if self.running:
            self._observe(self.inner, self.beta_inner)

    def on_step_end(self, args, state, control, **kwargs):
        whole = state.global_step % self.inner_steps == 0
        if self.running and (whole or state.global_step == state.max_steps):
            schedule = kwargs["lr_scheduler"].get_last_lr()[0] / args.learning_rate
            reached = flatten(self.parameters)
            self._remember(schedule if self.outer_schedule == "inner" else 1.0)
            fused = self._fuse(reached)
            after_fusion(self.momentum, kwargs["optimizer"], self.start, reached, fused)
            self.start, self.inner = fused, Importance.zeros(fused, self.score)

    def _observe(self, maps: Importance, beta: float) -> None:
        weights = flatten(self.parameters)
        gradients = importance.flatten_gradients(self.parameters)
        if not importance.update(maps, weights, gradients, beta, self.beta_uncertainty):
            warnings.warn("recurrent_kif: a gradient is not finite, left out", stacklevel=2)

    def _remember(self, schedule: float) -> None:
        """The outer steps: from tQ to tS on memory, whose gradients feed the outer map."""
        for group in self.optimizer.param_groups if self.outer_optimizer == "own" else ():
            group["lr"] = self.rate * schedule
        first = len(self.shares) * self.outer_steps
        for i in range(first, first + self.outer_steps):
            self.engine.fit_step(
                self.context.memory.draw(i * self.rows, self.rows),
                self.optimizer,
                seed=derive(self.context.seed, "recurrent_kif", i),
                inspect=lambda: self._observe(self.outer, self.beta_outer),
            )

    def _fuse(self, reached: Tensor) -> Tensor:
        inner_mask = important(importance.score(self.inner), self.quantile)
        outer_mask = important(importance.score(self.outer), self.quantile)
        self.shares.append(importance.case_shares(inner_mask, outer_mask))
        remembered = flatten(self.parameters)
        fused = importance.fuse(self.start, reached, remembered, inner_mask, outer_mask, self.table)
        importance.write_back(fused, self.parameters)
        return fused

    def end_task(self, model: nn.Module) -> None:
        self.running = False

    def state_dict(self) -> dict[str, Tensor]:
        state = {"shares": torch.stack(self.shares)} if self.shares else {}
        if self.running:
            state |= self._buffers()
            if self.outer_optimizer == "own":
                state |= adam_tensors(self.optimizer, self.parameters)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.shares = list(state["shares"]) if "shares" in state else []
        if self.running:
            for name, buffer in self._buffers().items():
                buffer.copy_(state[name])
            load_adam_tensors(self.optimizer, self.parameters, state)

    def _buffers(self) -> dict[str, Tensor]:
        maps = {"inner": self.inner.sensitivity, "inner_uncertainty": self.inner.uncertainty}
        maps |= {"outer": self.outer.sensitivity, "outer_uncertainty": self.outer.uncertainty}
        return {"start": self.start, **{k: v for k, v in maps.items() if v is not None}}
