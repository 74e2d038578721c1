"""The state of Recurrent-KIF during a task: the start of the round and both importance maps."""

import math
import warnings
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from perdure.errors import PerdureError
from perdure.methods.recurrent_kif import fusion
from perdure.methods.recurrent_kif.fusion import FusionTable, KeptShare, Momentum, Soft
from perdure.methods.shared import importance
from perdure.methods.shared.importance import (
    CHUNK,
    Importance,
    Piece,
    ScoreKind,
    above,
    bits_of,
    chunk_size,
    pack,
    pieces_of,
    unpack,
)
from perdure.models.sharded import Shards, local


# The norm of the weights is measured once a round, in which it may grow by this factor. It only
# tells finite sensitivities from others.
GROWTH = 2.0**20

Extent = Literal["all", "parameter"]
Restore = Literal["round", "stage"]


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

    The inner map starts from zero in each round, the outer one in each task. All buffers are made
    here, once, and are changed in place and in pieces. After the inner steps only the mask of the
    inner map is needed, so the buffer of the map holds what the inner steps reached, until the next
    round begins. (Soft weights need the map as well, and thus one more buffer.)

    Args:
        parameters: the trained weights.
        table: the weights of the fusion.
        score: what the masks are computed from.
        quantile: the share of the weights that are not important.
        beta_uncertainty: the smoothing of the deviation.
        momentum: what happens to the inner optimizer's first moment at a fusion.
        states: the data type of the maps, and of the difference between the start of the round and
            what the inner steps reached.
        offload: whether the buffers are in host memory instead of the weights' device.
        quantile_over: whether one threshold holds for all weights, or one for each parameter.
        agree: whether a weight that is important to both sides, but is moved in opposite directions
            by them, counts as important to the outer side only.
        restore: where a weight that is important to the outer side only goes back to, before the
            outer update is added: the start of the round, or the weights when the task began.
        shuffle: a seed with which the scores are given to other weights at random, always to the
            same ones: among all weights, or among those of each parameter if each has a threshold.
            None gives each weight its own.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        table: FusionTable | Soft,
        score: ScoreKind,
        quantile: float,
        beta_uncertainty: float,
        momentum: Momentum = "keep",
        states: torch.dtype = torch.float32,
        offload: bool = False,
        quantile_over: Extent = "all",
        agree: bool = False,
        restore: Restore = "round",
        shuffle: int | None = None,
    ):
        self.parameters, self.quantile, self.table = parameters, quantile, table
        self.quantile_over, self.agree = quantile_over, agree
        self.beta_uncertainty, self.momentum = beta_uncertainty, momentum
        self.device = local(parameters[0]).device
        self.shards = Shards(parameters)
        n = sum(part.numel() for part in self._own())
        # The sums of a kept share are the same for all pieces of this size, and the last values of
        # a piece of soft weights, which do not fill a register, are rounded differently.
        is_exact = momentum != "scale" and not isinstance(table, Soft)
        size = CHUNK if momentum == "scale" else chunk_size(self.device)
        self.pieces = pieces_of(self._own(), size, apart=is_exact)
        self.buffer = torch.empty(min(size, n), device=self.device)
        pinned = offload and self.device.type == "cuda"

        def zeros(dtype: torch.dtype, length: int = n) -> Tensor:
            device = torch.device("cpu") if offload else self.device
            return torch.zeros(length, dtype=dtype, device=device, pin_memory=pinned)

        def importance_of(kind: ScoreKind) -> Importance:
            is_uncertain = kind == "sensitivity_uncertainty"
            return Importance(zeros(states), zeros(states) if is_uncertain else None)

        self.start = zeros(torch.float32)
        # By piece, each weight in a bit.
        self.inner_masks = [zeros(torch.uint8, -(-_length(piece) // 8)) for piece in self.pieces]
        self.inner, self.outer = importance_of(score), importance_of(score)
        self.reached = zeros(states) if isinstance(table, Soft) else self.inner.sensitivity
        for piece in self.pieces:
            self.start[piece.place] = self._weights(piece)
        self.most = self._most()
        self.stage = self.start.clone() if restore == "stage" else None
        self.order = None if shuffle is None else self._shuffled(shuffle)

    def _most(self) -> Tensor:
        """What the norm of the weights does not exceed in a round, which measures it once."""
        return GROWTH * get_total_norm([part.detach() for part in self._own()]).float()

    def _own(self) -> list[Tensor]:
        """The parameters; of sharded ones, the parts of this process."""
        return [local(parameter) for parameter in self.parameters]

    def _shuffled(self, seed: int) -> Tensor:
        """For each weight of the buffer the place of that whose score it gets."""
        sizes = [part.numel() for part in self._own()]
        sizes = sizes if self.quantile_over == "parameter" else [sum(sizes)]
        generator = torch.Generator().manual_seed(seed)
        begins = [0, *accumulate(sizes)]
        return torch.cat(
            [
                begin + torch.randperm(size, generator=generator)
                for begin, size in zip(begins, sizes, strict=False)
            ]
        )

    def _scores(self, maps: Importance, piece: Piece) -> Tensor:
        """The scores of a piece, in fp32 on the device of the weights."""
        if self.order is None:
            return importance.score_of(maps, piece.place, self.device)
        places = self.order[piece.place].to(maps.sensitivity.device)
        uncertainty = None if maps.uncertainty is None else maps.uncertainty[places]
        given = Importance(maps.sensitivity[places], uncertainty)
        return importance.score_of(given, slice(None), self.device)

    def _weights(self, piece: Piece) -> Tensor:
        return importance.read(self._own(), piece, self.buffer)

    def observe(self, maps: Importance, beta: float) -> Tensor | None:
        """Update the inner or the outer map with the current gradients and weights.

        Returns:
            The norm of the gradients; None if other processes have some of them.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = None if self.shards.are_many else get_total_norm(gradients)
        is_finite = importance.update(
            maps,
            self.parameters,
            [parameter.grad for parameter in self.parameters],
            beta_sensitivity=beta,
            beta_uncertainty=self.beta_uncertainty,
            shards=self.shards,
            bound=None if norm is None else importance.bound_of(self.most, norm),
        )
        if not is_finite:
            warnings.warn("recurrent_kif: skipped a gradient that is not finite", stacklevel=2)
        return norm

    @torch.no_grad()
    def end_inner_steps(self) -> None:
        """Compute the inner mask, and store what the inner steps reached."""
        thresholds = self._thresholds(self.inner)
        if self.order is not None:  # any score may be needed until all masks are made
            for number, piece in enumerate(self.pieces):
                self._mask_inner(number, piece, thresholds)
        for number, piece in enumerate(self.pieces):
            if self.order is None:
                self._mask_inner(number, piece, thresholds)
            reached = self._weights(piece)
            if self.reached.dtype != torch.float32:
                reached = reached - self.start[piece.place].to(self.device)
            self.reached[piece.place] = reached

    def _mask_inner(self, number: int, piece: Piece, thresholds: Tensor) -> None:
        self.inner_masks[number].copy_(pack(self._important(self.inner, piece, thresholds)))

    @torch.no_grad()
    def fuse(self) -> tuple[KeptShare, Tensor, Tensor]:
        """Fuse the inner update with the outer update, which came after it; begin the next round.

        The next round starts from the fused weights, which are also written to the parameters.

        Returns:
            The share of the inner update that was kept, if the momentum depends on it; the shares
            of the four cases; and for each parameter the number of its weights, and how many of
            them are important to the inner and to the outer side.
        """
        thresholds = self._thresholds(self.outer)
        ranges = self._ranges() if isinstance(self.table, Soft) else None
        sizes = torch.tensor([parameter.numel() for parameter in self.parameters])  # of all shards
        counts = torch.zeros(len(sizes), 3, dtype=torch.int64, device=self.device)
        kept = KeptShare(self.device)
        for packed, piece in zip(self.inner_masks, self.pieces, strict=True):
            inner_mask = unpack(packed.to(self.device), _length(piece))
            outer_mask = self._important(self.outer, piece, thresholds)
            if self.agree:
                inner_mask &= ~(outer_mask & bits_of(self._disagree(piece)))
            start, reached, fused = self._fused(piece, inner_mask, outer_mask, ranges)
            if self.momentum == "scale":
                kept.add(start, reached, fused)
            importance.write(fused, self._own(), piece)
            self.start[piece.place] = fused
            for number, _, place in piece.parts:
                counts[number] += fusion.counts(inner_mask[place], outer_mask[place])
        for buffer in self.inner:
            if buffer is not None:
                buffer.zero_()
        self.most = self._most()
        counts = self.shards.sum(counts)
        kept.add_up(self.shards)
        shares = fusion.case_shares(*counts.sum(0), n=int(sizes.sum()))
        return kept, shares.cpu(), torch.cat([sizes[:, None], counts[:, :2].cpu()], dim=1)

    def _thresholds(self, maps: Importance) -> Tensor:
        """The threshold of all scores, or one for each parameter."""
        if self.quantile_over == "all":
            return importance.threshold_of(maps, self.quantile, self.device, shards=self.shards)
        sizes = [part.numel() for part in self._own()]
        return importance.thresholds_of(
            maps, self.quantile, self.device, sizes=sizes, shards=self.shards
        )

    def _important(self, maps: Importance, piece: Piece, thresholds: Tensor) -> Tensor:
        """The mask of the scores of a piece that are above the threshold, or their parameter's."""
        scores = self._scores(maps, piece)
        if self.quantile_over == "all":
            return above(scores, thresholds)
        numbers = torch.tensor([number for number, *_ in piece.parts], device=self.device)
        counts = [place.stop - place.start for _, place, _ in piece.parts]
        of_each = torch.tensor(counts, device=self.device)
        return above(scores, thresholds[numbers].repeat_interleave(of_each))

    def _points(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """The values of a piece at the start, after the inner steps and after the outer steps."""
        start, reached = (b[piece.place].to(self.device) for b in (self.start, self.reached))
        if self.reached.dtype != torch.float32:
            reached = start + reached.float()
        return start, reached, self._weights(piece)

    def _disagree(self, piece: Piece) -> Tensor:
        """The mask of the weights that the inner and the outer steps move in opposite directions.

        The signs are multiplied, as the product of two small updates could be zero. Weights of a
        lower precision than fp32 started from the start of the round as they hold it.
        """
        start, reached, outer = self._points(piece)
        types = [(place, self.parameters[number].dtype) for number, _, place in piece.parts]
        start = torch.cat([start[place].to(dtype).float() for place, dtype in types])
        return (reached - start).sign_() * (outer - reached).sign_() < 0

    def _fused(
        self,
        piece: Piece,
        inner_mask: Tensor,
        outer_mask: Tensor,
        ranges: list[tuple[Tensor, Tensor]] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The values of a piece at the start, after the inner steps, and fused."""
        start, reached, outer = self._points(piece)
        if isinstance(self.table, Soft):
            assert ranges
            fused = fusion.fuse_softly(
                start,
                inner=reached,
                outer=outer,
                inner_scores=self._scores(self.inner, piece),
                outer_scores=self._scores(self.outer, piece),
                temperature=self.table.temperature,
                inner_range=ranges[0],
                outer_range=ranges[1],
            )
        else:
            fused = fusion.fuse(
                start,
                inner=reached,
                outer=outer,
                inner_mask=inner_mask,
                outer_mask=outer_mask,
                table=self.table,
            )
            if self.stage is not None:
                w_inner, w_outer = self.table.outer
                stage = self.stage[piece.place].to(self.device)
                restored = stage + w_inner * (reached - start) + w_outer * (outer - reached)
                fused = fusion.where(outer_mask & ~inner_mask, restored, fused)
        return start, reached, fused

    def _ranges(self) -> list[tuple[Tensor, Tensor]]:
        """The least and the greatest score of the inner and of the outer side."""
        ranges = []
        # A process without any of the weights has neither a least nor a greatest score.
        ends = torch.tensor([[math.inf], [-math.inf]], device=self.device)
        ends = ends.repeat(1, max(len(self.pieces), 1))
        for maps in (self.inner, self.outer):
            for i, piece in enumerate(self.pieces):
                scores = importance.score_of(maps, piece.place, self.device)
                ends[0, i], ends[1, i] = scores.aminmax()
            low, high = -self.shards.most(-ends[0].amin()), self.shards.most(ends[1].amax())
            ranges.append((low, high))
        return ranges

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds or in one, on the way through its inner steps."""
        maps = {"inner": self.inner.sensitivity, "inner_uncertainty": self.inner.uncertainty}
        maps |= {"outer": self.outer.sensitivity, "outer_uncertainty": self.outer.uncertainty}
        maps["stage"] = self.stage
        return {"start": self.start, **{k: v for k, v in maps.items() if v is not None}}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.tensors().items():
            buffer.copy_(state[name])
        self.most = self._most()


def _length(piece: Piece) -> int:
    return piece.place.stop - piece.place.start
