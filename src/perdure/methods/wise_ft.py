"""Averaging with the previous stage."""

import math
import warnings
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.data.tokens import Features
from perdure.errors import PerdureError
from perdure.methods.shared.written_rows import write_rows
from perdure.models.kinds import Kind
from perdure.seeds import derive
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, known_labels, old_labels, snapshot, trained
from perdure.train.surprise import surprise


SHARES = [tenths / 10 for tenths in range(10, -1, -1)]  # that a probe tries
WRITTEN_ROWS, WRITTEN_TOKENS = 32, 64  # of the probe `base`


class WiSEFT(Method):
    """Moves the weights part of the way back to the previous stage after a task.

        w <- w_prev + share (w - w_prev)

    WiSE-FT (Wortsman et al. 2022, 2109.01903) averages a fine-tuned model with the model from which
    it was trained; here that is the previous stage. With a share of 1/t at stage t, w is the mean
    of all stages. The trained weights are averaged: with LoRA, these are the factors A and B, and
    their product is then not the average of the products. The new rows of an encoder's head stay as
    trained.

    With a `probe` the share is chosen after each task. The shares 1, 0.9, ..., 0 are tried, and the
    largest is taken with which the perplexity of the probe's rows is at most `tolerance` times the
    smallest one of all shares,

        exp(loss(share)) <= tolerance min_s exp(loss(s))

    where the loss is the mean over tasks of the mean loss of their rows, without dropout. The rows
    are those remembered of old tasks, or ones that the base writes itself, as for `self_replay`.

    State: a copy of the trained weights while a task is learned; after it only the number of an
    encoder's labels, and the share that a probe has chosen, which `perdure show` prints. Old rows:
    none, but for the probe `memory`. Cost: negligible; with a probe, 11 forward passes of its rows
    after each task, and with `base` the writing of its rows, at most 64 tokens each. The first task
    is plain fine-tuning.

    Args:
        share: the share of the new weights, 0 to 1; null uses 1/t. With a probe it has no effect.
        probe: which rows choose the share: `memory`, the remembered rows of old tasks, with those
            of `general` as one more task; `base`, 32 rows that the base writes with its adapter
            disabled; null for none.
        tolerance: how much larger than the smallest one the probe's perplexity may be, >= 1.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2109.01903"
    follows: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"share": 1.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.5, second_loss=1.2)

    def __init__(
        self,
        share: float | None = 0.5,
        probe: Literal["memory", "base"] | None = None,
        tolerance: float = 1.15,
    ):
        if share is not None and not 0 <= share <= 1:
            raise PerdureError(f"wise_ft: share must be from 0 to 1, got {share}")
        if tolerance < 1:
            raise PerdureError(f"wise_ft: tolerance must be >= 1, got {tolerance}")
        self.share, self.probe, self.tolerance = share, probe, tolerance
        vars(self)["rehearses"] = probe == "memory"  # of this object, not of the class

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if self.probe != "base":
            return
        if kind != "causal":
            raise PerdureError(
                f"wise_ft: probe base: a base of kind {kind} writes nothing without a prompt; use "
                "probe memory"
            )
        if config.adapter is None:
            raise PerdureError(
                "wise_ft: probe base: the base with its adapter disabled writes the rows, and all "
                "weights are trained here (adapter: null); set adapter={}, or use probe memory"
            )

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.labels = old_labels(context)
        self.chosen: Tensor | None = None
        self.before: Named = snapshot(model) if context.stage > 1 else {}
        return super().begin_task(model, context)

    @torch.no_grad()
    def end_task(self, model: nn.Module) -> None:
        if self.before:
            # A probe changes the weights before their share is known.
            learned: Named = snapshot(model) if self.probe else {**trained(model)}
            share = self._share(model, learned)
            self._set(model, learned, share)
            if self.probe is not None:
                self.chosen = torch.tensor(share)
        self.before, self.labels = {}, known_labels(model).get("labels")

    def _share(self, model: nn.Module, learned: Named) -> float:
        """The share of the new weights; to find it, the probe changes the weights."""
        if self.probe is None:
            return 1 / self.context.stage if self.share is None else self.share
        rows = self._probe_rows()
        if not rows:
            warnings.warn(
                f"wise_ft: the probe {self.probe} has no rows, so the new weights stay as they are",
                stacklevel=2,
            )
            return 1.0
        losses: dict[float, float] = {}
        for share in SHARES:
            self._set(model, learned, share)
            loss = self._loss(rows)
            if math.isfinite(loss):
                losses[share] = loss
        if not losses:
            warnings.warn(
                f"wise_ft: the loss on the rows of probe {self.probe} is not finite with any "
                "share, so the new weights stay as they are",
                stacklevel=2,
            )
            return 1.0
        bound = min(losses.values()) + math.log(self.tolerance)
        return max(share for share, loss in losses.items() if loss <= bound)

    def _probe_rows(self) -> list[list[Features]]:
        """The rows of the probe, by task."""
        if self.probe == "memory":
            return [rows for rows in self.context.memory.tasks.values() if rows]
        written = write_rows(
            self.engine.base,
            self.engine.passes,
            rows=WRITTEN_ROWS,
            source="base",
            seed=derive(self.context.seed, "write"),
            max_new_tokens=WRITTEN_TOKENS,
        )
        return [written] if written else []

    def _loss(self, rows: list[list[Features]]) -> float:
        """The mean over tasks of the mean loss of their rows."""
        size = self.engine.args.per_device_train_batch_size
        base, bf16 = self.engine.base, bool(self.engine.args.bf16)
        device = next(base.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=bf16):  # as in the scores
            return fmean(fmean(surprise(base, of_task, size)) for of_task in rows)

    def _set(self, model: nn.Module, learned: Named, share: float) -> None:
        """Set the weights to those of a share of the new ones."""
        for name, p in trained(model).items():
            if name in self.before:
                rows = len(p)
                if self.labels is not None and name in HEAD_NAMES:
                    rows = int(self.labels)  # the old rows of a head that has grown
                p[:rows] = torch.lerp(self.before[name][:rows], learned[name][:rows], share)

    def state_dict(self) -> dict[str, Tensor]:
        state = {"labels": self.labels, "share": self.chosen}
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.labels, self.chosen = state.get("labels"), state.get("share")
