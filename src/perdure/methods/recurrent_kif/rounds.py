"""The state of Recurrent-KIF during a task: the start of the round and both importance maps."""

import warnings
from typing import Any

from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.recurrent_kif import fusion
from perdure.methods.recurrent_kif.fusion import FusionTable, Soft
from perdure.methods.shared import importance
from perdure.methods.shared.importance import Importance, ScoreKind, flatten, important
from perdure.models.sharded import Shards, local


def table_of(setting: dict[str, Any]) -> FusionTable | Soft:
    """Read the keyword `fusion`: a table of the four cases, or `{soft: temperature}`.

    Raises:
        PerdureError: it is neither of the two, or the temperature is not above 0.
    """
    if set(setting) == {"soft"}:
        temperature = setting["soft"]
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise PerdureError(
                f"recurrent_kif: fusion: soft takes a temperature above 0, got {temperature!r}"
            )
        return Soft(float(temperature))
    if set(setting) != set(FusionTable._fields):
        cases = ", ".join(FusionTable._fields)
        raise PerdureError(
            f"recurrent_kif: fusion takes the cases {cases}, or soft alone, got {sorted(setting)}"
        )
    for case, weights in setting.items():
        pair = isinstance(weights, list | tuple) and len(weights) == 2
        if not pair or not all(isinstance(w, int | float) for w in weights):
            raise PerdureError(
                f"recurrent_kif: fusion: {case} takes two weights, such as [1, 0], got {weights!r}"
            )
    return FusionTable(**{case: (float(w[0]), float(w[1])) for case, w in setting.items()})


class Rounds:
    """The weights at the start of the round, the importance maps of both sides, and the fusion.

    The inner map starts from zero in each round, the outer one in each task.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        table: FusionTable | Soft,
        score: ScoreKind,
        quantile: float,
        beta_uncertainty: float,
    ):
        self.parameters, self.quantile, self.table = parameters, quantile, table
        self.score: ScoreKind = score
        self.beta_uncertainty = beta_uncertainty
        self.shards = Shards(parameters)
        self.start = flatten(parameters)
        self.inner = Importance.zeros(self.start, score)
        self.outer = Importance.zeros(self.start, score)

    def observe(self, maps: Importance, beta: float) -> None:
        """Update the inner or the outer map with the current gradients and weights."""
        weights = flatten(self.parameters)
        gradients = importance.flatten_gradients(self.parameters)
        is_finite = importance.update(
            maps,
            weights,
            gradients,
            beta_sensitivity=beta,
            beta_uncertainty=self.beta_uncertainty,
            shards=self.shards,
        )
        if not is_finite:
            warnings.warn("recurrent_kif: skipped a gradient that is not finite", stacklevel=2)

    def fuse(self, reached: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse the inner update, up to `reached`, with the outer update, which came after it.

        Returns:
            The fused weights, which are also written to the parameters; the shares of the four
            cases; and for each parameter the number of its weights, and how many of them are
            important to the inner and to the outer side.
        """
        inner_scores, outer_scores = importance.score(self.inner), importance.score(self.outer)
        inner_mask = important(inner_scores, self.quantile, self.shards)
        outer_mask = important(outer_scores, self.quantile, self.shards)
        outer = flatten(self.parameters)
        if isinstance(self.table, Soft):
            fused = fusion.fuse_softly(
                self.start,
                inner=reached,
                outer=outer,
                inner_scores=inner_scores,
                outer_scores=outer_scores,
                temperature=self.table.temperature,
                shards=self.shards,
            )
        else:
            fused = fusion.fuse(
                self.start,
                inner=reached,
                outer=outer,
                inner_mask=inner_mask,
                outer_mask=outer_mask,
                table=self.table,
            )
        importance.write_back(fused, self.parameters)
        sizes = [local(p).numel() for p in self.parameters]
        counts = self.shards.sum(fusion.counts([inner_mask, outer_mask], sizes))
        shares = fusion.case_shares(inner_mask, outer_mask, self.shards)
        return fused, shares.cpu(), counts.cpu()

    def begin(self, start: Tensor) -> None:
        """Begin the next round, from the weights `start`."""
        self.start, self.inner = start, Importance.zeros(start, self.score)

    def tensors(self) -> dict[str, Tensor]:
        maps = {"inner": self.inner.sensitivity, "inner_uncertainty": self.inner.uncertainty}
        maps |= {"outer": self.outer.sensitivity, "outer_uncertainty": self.outer.uncertainty}
        return {"start": self.start, **{k: v for k, v in maps.items() if v is not None}}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.tensors().items():
            buffer.copy_(state[name])
