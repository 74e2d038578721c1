"""Adam's state from outside: what becomes of it when weights are moved, and how it is saved."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer


Momentum = Literal["keep", "reset", "scale"]
STATE = ("step", "exp_avg", "exp_avg_sq")


@torch.no_grad()
def after_fusion(
    policy: Momentum, optimizer: Any, start: Tensor, reached: Tensor, fused: Tensor
) -> None:
    """Apply the policy to the first moments m after a fusion moved `reached` to `fused`.

    keep   m unchanged: it still pushes along the whole inner update.
    reset  m = 0; the second moment stays.
    scale  m *= clip(<fused - start, reached - start> / |reached - start|^2, 0, 1), the share of
           the inner update that the fusion kept.
    """
    moments = [state["exp_avg"] for state in optimizer.state.values() if "exp_avg" in state]
    if policy == "keep" or not moments:
        return
    share = torch.zeros((), device=start.device)
    if policy == "scale":
        inner = reached - start
        share = torch.dot(fused - start, inner) / torch.dot(inner, inner).clamp(min=1e-30)
    torch._foreach_mul_(moments, share.clamp(0, 1))  # pyright: ignore[reportPrivateImportUsage]


def adam_tensors(optimizer: Optimizer, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; empty before its first step."""
    return {
        f"adam.{key}.{i}": optimizer.state[p][key]
        for i, p in enumerate(parameters)
        for key in STATE
        if key in optimizer.state[p]
    }


def load_adam_tensors(
    optimizer: Optimizer, parameters: Sequence[Tensor], tensors: dict[str, Tensor]
) -> None:
    """The inverse of `adam_tensors`; other names are passed over.

    The moments go to where their parameters lie; the step stays where torch keeps it, on the CPU.
    """
    for i, p in enumerate(parameters):
        for key in STATE:
            if f"adam.{key}.{i}" in tensors:
                device = "cpu" if key == "step" else p.device
                optimizer.state[p][key] = tensors[f"adam.{key}.{i}"].to(device, copy=True)
