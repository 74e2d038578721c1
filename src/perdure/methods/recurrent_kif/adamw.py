"""torch's AdamW, taken in pieces of the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from perdure.methods.shared.importance import chunk_size, pieces_of, put
from perdure.models.sharded import local


Place = slice | None  # in the flattened tensor; None is a whole tensor that is not contiguous


class PiecewiseAdamW(torch.optim.AdamW):
    """AdamW that needs no temporary tensor larger than a piece; the result is bitwise torch's.

    Only a piece of the moments must be on the device and in the weights' data type. On a CPU the
    result is that of torch's fused kernel, which reads and writes each value once; elsewhere, and
    for tensors that are not contiguous, it is that of the default ones.

    Of weights that are spread over several processes, each process changes its own part.

    Args:
        params: as in torch.
        offload: whether the moments are in host memory.
        first_moment: the data type of the first moment; None is that of the weights. The second
            moment changes by less than the precision of bf16 in a step, and would stand still.
        options: further keywords of torch's AdamW.
    """

    def __init__(
        self,
        params: Any,
        offload: bool = False,
        first_moment: torch.dtype | None = None,
        **options: Any,
    ):
        self.offload, self.first_moment = offload, first_moment
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self._begin(parameter)
            for piece in self._pieces(parameters):
                self._step_piece(piece, group)
            for parameter in parameters:
                self.state[parameter]["step"] += 1

    def _begin(self, parameter: nn.Parameter) -> None:
        def zeros(dtype: torch.dtype | None) -> Tensor:
            own = local(parameter)
            if not self.offload:
                return torch.zeros_like(own, dtype=dtype)
            return torch.zeros_like(own, dtype=dtype, device="cpu", pin_memory=own.is_cuda)

        moments = {"exp_avg": zeros(self.first_moment), "exp_avg_sq": zeros(None)}
        self.state[parameter] = {"step": torch.zeros(()), **moments}

    def _pieces(self, parameters: Sequence[nn.Parameter]) -> list[list[tuple[nn.Parameter, Place]]]:
        """The pieces of parameters with gradients; one that cannot be flattened is a piece alone.

        They are cut apart, as kernels round the last few values of a part, which do not fill a
        register, differently. There is one piece if no step makes a temporary tensor.
        """
        flat: list[nn.Parameter] = []
        other: list[nn.Parameter] = []
        for p in parameters:
            is_flat = p.grad is not None and all(local(t).is_contiguous() for t in (p, p.grad))
            (flat if is_flat else other).append(p)
        placed: list[list[tuple[nn.Parameter, Place]]] = [[(p, None)] for p in other]
        own = [local(parameter) for parameter in flat]
        if own and own[0].is_cpu and self.first_moment is None:
            return [*placed, [(p, slice(None)) for p in flat]]
        pieces = pieces_of(own, chunk_size(own[0].device), apart=True) if own else []
        for piece in pieces:
            placed.append([(flat[number], place) for number, place, _ in piece.parts])
        return placed

    def _step_piece(
        self, piece: Sequence[tuple[nn.Parameter, Place]], group: dict[str, Any]
    ) -> None:
        states = [self.state[parameter] for parameter, _ in piece]
        is_flat = all(place is not None for _, place in piece)
        weights = [_at(local(parameter.detach()), place) for parameter, place in piece]
        gradients = [_at(local(parameter.grad), place) for parameter, place in piece]  # type: ignore[arg-type]
        stored = [
            [_at(state[key], place) for state, (_, place) in zip(states, piece, strict=True)]
            for key in ("exp_avg", "exp_avg_sq")
        ]
        first, second = (
            [moment.to(weight) for moment, weight in zip(moments, weights, strict=True)]
            for moments in stored
        )
        adamw(
            weights,
            gradients,
            first,
            second,
            max_exp_avg_sqs=[],
            state_steps=[state["step"].clone() for state in states],  # adamw adds one to each
            # The fused kernel reads all tensors in the order in which they are stored, and on a
            # GPU it needs the steps there.
            fused=True if is_flat and weights[0].is_cpu else None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for old, new in zip(stored[0] + stored[1], first + second, strict=True):
            put(new, old)


def _at(tensor: Tensor, place: Place) -> Tensor:
    return tensor if place is None else tensor.view(-1)[place]
