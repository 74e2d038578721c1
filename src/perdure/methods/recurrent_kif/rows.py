"""Recurrent-KIF in the space of LoRA's product BA: its rows are identified and fused.

A weight of A or B alone changes nothing: the model has their product. A row of BA is what a LoRA
adapter adds to the weights of one output of a layer. Shapes: A [r, d_in], B [d_out, r].
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.recurrent_kif import fusion
from perdure.methods.recurrent_kif.fusion import FusionTable, KeptShare, Momentum
from perdure.methods.shared import importance
from perdure.methods.shared.importance import Importance, ScoreKind


class Factors(NamedTuple):
    """The factors of a LoRA product."""

    a: Tensor
    b: Tensor


class Unit(NamedTuple):
    """What is identified of one or two parameters: the rows of a product, or single weights.

    Args:
        name: the name of the parameter, of a product that of B.
        parameters: the numbers of the parameters: one, or those of A and B.
        size: how many rows or weights there are.
    """

    name: str
    parameters: tuple[int, ...]
    size: int

    @property
    def is_product(self) -> bool:
        return len(self.parameters) == 2


@torch.no_grad()
def fuse_rows(
    start: Factors, inner: Factors, outer: Factors, w_inner: Tensor, w_outer: Tensor
) -> Factors:
    """The factors of a product whose row i is nearest to

        W'_i = W0_i + w_inner_i (WQ_i - W0_i) + w_outer_i (WS_i - WQ_i),    W = BA

    W' has a higher rank than one product. A' is fused with the mean shares of the rows, and of all
    B with the least |W' - B A'|, B' is the one nearest to BQ:

        B' = BQ + (W' - BQ A') A'^T (A' A'^T)^+

    So only what is outside the rows of A' is lost. Both factors stay in the basis that the
    optimizer's moments are about. No matrix of the product's size is made. If every share is
    (1, 0), the result is `inner`, bit for bit.

    Args:
        start: the factors at the start of the round.
        inner: those after the inner steps.
        outer: those after the outer steps.
        w_inner: [d_out], the share of the inner update that each row keeps.
        w_outer: the same of the outer update.
    """
    moved_by_inner, moved_by_outer = inner.a - start.a, outer.a - inner.a
    a = inner.a + (w_inner.mean() - 1) * moved_by_inner + w_outer.mean() * moved_by_outer

    def onto(factors: Factors) -> Tensor:
        return factors.b @ (factors.a @ a.T)  # W A'^T, [d_out, r]

    # (W' - BQ A') A'^T
    missing = (w_inner - 1)[:, None] * (onto(inner) - onto(start))
    missing += w_outer[:, None] * (onto(outer) - onto(inner))
    missing += inner.b @ ((inner.a - a) @ a.T)
    gram = a.double() @ a.double().T
    if not gram.isfinite().all():  # the loss will not be either, and training stops there
        return Factors(a, inner.b * torch.nan)
    # Directions of A' that are rounding errors would be divided by rounding errors.
    inverse = torch.linalg.pinv(gram, rtol=len(a) * torch.finfo(a.dtype).eps, hermitian=True)
    return Factors(a, inner.b + (missing.double() @ inverse).to(inner.b))


class RowRounds:
    """The state of a task, as `Rounds`, with the rows of LoRA's products in place of weights.

    The sensitivity of row i is |<B_i, dL/dB_i>| = |<(BA)_i, dL/d(BA)_i>|, the first-order estimate
    of how much the loss changes if the adapter adds nothing to this output. Trained weights that
    are no factors of a linear layer, as those of an encoder's head, are identified and fused one by
    one. They have a quantile of their own, because one weight is less than a row.

    Args:
        parameters: the trained weights.
        names: their names.
        table: the weights of the fusion.
        score: what the masks are computed from.
        quantile: the share of the rows that are not important.
        beta_uncertainty: the smoothing of the deviation.
        momentum: what happens to the inner optimizer's first moment at a fusion.

    Raises:
        PerdureError: no parameter is a factor of a LoRA adapter.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        names: Sequence[str],
        table: FusionTable,
        score: ScoreKind,
        quantile: float,
        beta_uncertainty: float,
        momentum: Momentum,
    ):
        self.parameters, self.table, self.quantile = parameters, table, quantile
        self.beta_uncertainty, self.momentum = beta_uncertainty, momentum
        self.units = units_of(names, parameters)
        if not any(unit.is_product for unit in self.units):
            raise PerdureError(
                "recurrent_kif: unit: row fuses the rows of LoRA's products, and no LoRA adapter "
                "is trained; leave it out"
            )
        self.names = [unit.name for unit in self.units]
        like = torch.zeros(sum(unit.size for unit in self.units), device=parameters[0].device)
        self.inner, self.outer = Importance.zeros(like, score), Importance.zeros(like, score)
        self.start = importance.flatten(parameters)
        self.reached, self.inner_mask = self.start, like > 0

    def observe(self, maps: Importance, beta: float) -> None:
        """Update the inner or the outer map with the current gradients and weights."""
        weights, gradients = [], []
        for unit in self.units:
            parameter = self.parameters[unit.parameters[-1]]
            gradient = parameter.grad
            if unit.is_product and gradient is not None:
                weight = (parameter.detach().float() * gradient.float()).sum(1)
                gradient = torch.ones_like(weight)
            else:
                weight = parameter.detach().float().flatten()[: unit.size]
                gradient = None if gradient is None else gradient.flatten()
            weights.append(weight)
            gradients.append(gradient)
        is_finite = importance.update(
            maps,
            weights,
            gradients,
            beta_sensitivity=beta,
            beta_uncertainty=self.beta_uncertainty,
        )
        if not is_finite:
            warnings.warn("recurrent_kif: skipped a gradient that is not finite", stacklevel=2)

    @torch.no_grad()
    def end_inner_steps(self) -> None:
        """Compute the inner mask, and store what the inner steps reached."""
        self.inner_mask = self._is_important(self.inner)
        self.reached = importance.flatten(self.parameters)

    @torch.no_grad()
    def fuse(self) -> tuple[KeptShare, Tensor, Tensor]:
        """Fuse both updates and begin the next round; the result is that of `Rounds.fuse`.

        The counts are those of each unit.
        """
        outer_mask = self._is_important(self.outer)
        outer = importance.flatten(self.parameters)
        points = [self._shaped(flat) for flat in (self.start, self.reached, outer)]
        sizes = [unit.size for unit in self.units]
        masks = self.inner_mask.split(sizes), outer_mask.split(sizes)
        counts = []
        for unit, inner_mask, old_mask in zip(self.units, *masks, strict=True):
            at = [[point[number] for number in unit.parameters] for point in points]
            for number, fused in zip(
                unit.parameters, self._fused(unit, at, inner_mask, old_mask), strict=True
            ):
                self.parameters[number].copy_(fused)
            counts.append(fusion.counts(inner_mask, old_mask)[:2])
        fused = importance.flatten(self.parameters)
        kept = KeptShare(self.start.device)
        if self.momentum == "scale":
            kept.add(self.start, self.reached, fused)
        self.start = self.reached = fused
        for buffer in self.inner:
            if buffer is not None:
                buffer.zero_()
        shares = fusion.case_shares(
            *fusion.counts(self.inner_mask, outer_mask), n=len(self.inner_mask)
        )
        of_units = torch.cat([torch.tensor(sizes)[:, None], torch.stack(counts).cpu()], dim=1)
        return kept, shares.cpu(), of_units

    def _is_important(self, maps: Importance) -> Tensor:
        """The mask of the rows above the quantile of all rows, and of the other weights."""
        rows = sum(unit.size for unit in self.units if unit.is_product)
        parts = importance.score(maps).split([rows, len(maps.sensitivity) - rows])
        return torch.cat([importance.important(part, self.quantile) for part in parts if len(part)])

    def _fused(
        self, unit: Unit, at: list[list[Tensor]], inner_mask: Tensor, outer_mask: Tensor
    ) -> Sequence[Tensor]:
        """The fused parameters of a unit, given those at the three points of the round."""
        if unit.is_product:
            start, inner, outer = (Factors(*tensors) for tensors in at)
            shares = self._shares(inner_mask, outer_mask)
            return fuse_rows(start, inner, outer, *shares)
        start, inner, outer = (tensors[0].flatten() for tensors in at)
        fused = fusion.fuse(start, inner, outer, inner_mask, outer_mask, self.table)
        return [fused.view(at[0][0].shape)]

    def _shares(self, inner_mask: Tensor, outer_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the inner and of the outer update that each row keeps, by its case."""
        cases = inner_mask.long() * 2 + outer_mask.long()
        pairs = [self.table.neither, self.table.outer, self.table.inner, self.table.both]
        shares = torch.tensor(pairs, device=inner_mask.device)[cases]
        return shares[:, 0], shares[:, 1]

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds or in one, on the way through its inner steps."""
        maps = {"inner": self.inner.sensitivity, "inner_uncertainty": self.inner.uncertainty}
        maps |= {"outer": self.outer.sensitivity, "outer_uncertainty": self.outer.uncertainty}
        return {"start": self.start, **{k: v for k, v in maps.items() if v is not None}}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.tensors().items():
            buffer.copy_(state[name])


def units_of(names: Sequence[str], parameters: Sequence[Tensor]) -> list[Unit]:
    """The products of LoRA adapters of linear layers, and after them the other parameters.

    The A of an embedding begins at zero and has only the tokens that were seen, so that a fused B
    would grow without bound; its factors are other parameters here.
    """
    number_of = {name: number for number, name in enumerate(names)}
    products = []
    for name, number in number_of.items():
        partner = number_of.get(name.replace("lora_B.", "lora_A."), number)
        if partner != number and parameters[number].dim() == 2:
            products.append(Unit(name, (partner, number), len(parameters[number])))
    of_products = {number for unit in products for number in unit.parameters}
    return products + [
        Unit(name, (number,), parameters[number].numel())
        for name, number in number_of.items()
        if number not in of_products
    ]


def check_lora(adapter: Mapping[str, Any] | None) -> None:
    """Check that an adapter with these settings of PEFT is a LoRA adapter of whole layers.

    Raises:
        PerdureError: there is none, it has another product than BA, or one for each expert.
    """
    kind = "null" if adapter is None else str(adapter.get("peft_type", "LORA")).upper()
    if adapter is None or kind != "LORA":
        raise PerdureError(
            "recurrent_kif: unit: row fuses the rows of LoRA's products, and the adapter is "
            f"{kind}; set adapter={{}}, or leave unit out"
        )
    if adapter.get("target_parameters"):
        raise PerdureError(
            "recurrent_kif: unit: row takes an adapter's product as that of one layer, and "
            "target_parameters has one for each expert; leave out one of the two"
        )


def adapters_of(model: nn.Module) -> list[dict[str, Any]]:
    """The settings of the adapters of a model."""
    models = (module for module in model.modules() if isinstance(module, PeftModel))
    configs = [config for module in models for config in module.peft_config.values()]
    return [{**vars(config), "peft_type": PeftType(config.peft_type).value} for config in configs]
