"""Task skill localization and consolidation."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.shared.importance import (
    Importance,
    flatten,
    important,
    score,
    unit_range,
    update,
)
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, snapshot, trained


class TaSL(Method):
    """Averages each tensor with its old values after a task, by its importance to both tasks.

        I = |w g|,  S <- beta S + (1 - beta) I,  U <- beta U + (1 - beta) |I - S|
        a tensor's score: the mean of S U over its entries, then min-max scaled over all tensors
        w <- w_prev + kept (w - w_prev),  kept: `new` if important to both, 1 if only to the new
             task, 0 if only to the old ones, 1/2 if to neither
        old scores <- new x new scores + (1 - new) x old scores, scaled again

    The `share` of the tensors with the highest scores is important (Feng et al. 2024, 2408.05200,
    2408.09857). As in the authors' code, each A and each B (or each whole matrix) is one tensor,
    and I is computed after the optimizer's step, from the new weights and the clipped gradients,
    but not after the first step. Scores that are all equal are scaled to 0. An encoder's head stays
    as trained; a tensor that was not trained before counts as unimportant to the old tasks.
    TasLoRA, which weighs single ranks, is left out. The first task is plain fine-tuning.

    State: a number for each tensor, O(1) in tasks; while a task is learned, S and U and a copy of
    the trained weights. Old rows: none. Cost: a pass over the trained weights in each step.

    Args:
        share: the share of the tensors that counts as important, 0 to 1.
        beta: the smoothing of S and U, from 0 to less than 1.
        new: the weight of the new task for tensors important to both, and of its scores, 0 to 1.
        strength: how far the weights move from the trained (0) to the averaged ones (1).
    """

    family: ClassVar[Family] = "adapters"
    paper: ClassVar[str] = "https://huggingface.co/papers/2408.05200"
    follows: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.55, second_loss=1.8)

    def __init__(
        self, share: float = 0.2, beta: float = 0.85, new: float = 0.3, strength: float = 1.0
    ):
        if not (0 <= share <= 1 and 0 <= beta < 1 and 0 <= new <= 1 and 0 <= strength <= 1):
            raise PerdureError(
                "tasl: needs share, new and strength from 0 to 1 and 0 <= beta < 1, got "
                f"{share}, {new}, {strength} and {beta}"
            )
        self.share, self.beta, self.new, self.strength = share, beta, new, strength

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.maps: Importance | None = None
        self.load_state_dict(context.state)
        self.before: Named = snapshot(model) if self.old else {}
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        self.units = {name: p for name, p in trained(model).items() if name not in HEAD_NAMES}
        self.maps = Importance.zeros(flatten(list(self.units.values())), "sensitivity_uncertainty")

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.maps and state.global_step > 0:
            weights = list(self.units.values())
            update(
                self.maps,
                weights,
                [weight.grad for weight in weights],
                beta_sensitivity=self.beta,
                beta_uncertainty=self.beta,
            )

    @torch.no_grad()
    def end_task(self, model: nn.Module) -> None:
        assert self.maps is not None
        parts = score(self.maps).split([p.numel() for p in self.units.values()])
        scores = unit_range(torch.stack([part.mean() for part in parts]).cpu())
        if self.old:
            old = torch.stack([self.old.get(name, torch.tensor(0.0)) for name in self.units])
            self._average(self._important(scores), self._important(old))
            scores = unit_range(self.new * scores + (1 - self.new) * old)
        self.old = self.old | {n: x.clone() for n, x in zip(self.units, scores, strict=True)}
        self.before, self.units, self.maps = {}, {}, None

    def _important(self, scores: Tensor) -> list[bool]:
        return important(scores, round(1 - self.share, 9)).tolist()

    def _average(self, important_to_new: list[bool], important_to_old: list[bool]) -> None:
        """Average each tensor with its weights before the task, by its two importances."""
        table = {(True, True): self.new, (True, False): 1.0, (False, True): 0.0}
        importances = zip(important_to_new, important_to_old, strict=True)
        for (name, p), case in zip(self.units.items(), importances, strict=True):
            new_share = 1 - self.strength * (1 - table.get(case, 0.5))
            if name in self.before and new_share < 1:
                p.copy_(torch.lerp(self.before[name].float(), p.float(), new_share))

    def state_dict(self) -> dict[str, Tensor]:
        maps = {} if self.maps is None else {"s": self.maps[0], "u": self.maps.uncertainty}
        return {f"i.{name}": x for name, x in self.old.items()} | maps  # type: ignore[operator]

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.old = {name[2:]: x for name, x in state.items() if name.startswith("i.")}
        if self.maps:
            device = self.maps.sensitivity.device
            self.maps = Importance(state["s"].to(device), state["u"].to(device))
