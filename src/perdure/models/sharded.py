"""Weights that are spread over several processes: the part of this process, and the whole."""

from collections.abc import Sequence

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from perdure import processes
from perdure.errors import PerdureError
from perdure.models.traces import sharing_copy


SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights of a Trainer's model are spread over several processes.

    True under FSDP, DeepSpeed, Megatron-LM and tensor parallelism.
    """
    parts = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return AcceleratorState().distributed_type in SHARDED or parts


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor; a tensor that is not sharded is all its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, which must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, which all processes have, on the device and in the parts of another.

    Nothing is sent: each process takes its own part.
    """
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(
        tensor.to(like.device),
        like.device_mesh,
        like.placements,
        src_data_rank=None,
    )


def reshard(model: nn.Module) -> None:
    """Give back what a forward pass has gathered, if no backward pass will do so.

    `fully_shard` keeps some weights whole after a forward pass, as they are needed next.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class Shards:
    """Sums over the parts that all processes have of some weights.

    Args:
        parameters: the weights. If they are not sharded, every sum is that of this process.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.are_many = any(isinstance(parameter, DTensor) for parameter in parameters)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes. It is changed in place."""
        if self.are_many:
            torch.distributed.all_reduce(tensor)
        return tensor

    def most(self, tensor: Tensor) -> Tensor:
        """Return the largest values of a tensor over all processes. It is changed in place."""
        if self.are_many:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor


class Frame:
    """A model without weights, which takes those of a model that was sharded after it was copied.

    `fully_shard` changes a model in place, and there is no way back. What follows the training,
    such as scoring and saving, needs a plain model in the main process.

    Args:
        model: the model, before it is sharded.

    Raises:
        PerdureError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module):
        copied = sharing_copy(model, trained=False)
        if copied is None:
            raise PerdureError(
                "FSDP2: this base cannot be put together again after a training; use DDP"
            )
        self.model: nn.Module = copied
        self._fill({p: torch.empty_like(p, device="meta") for p in copied.parameters()})

    @torch.no_grad()
    def filled(self, model: nn.Module) -> nn.Module:
        """Return the plain model with the weights of a sharded one; in the main process only.

        All processes must call this; in the others, the weights stay empty.
        """
        sharded = dict(model.named_parameters())
        weights = {}
        for name, parameter in self.model.named_parameters():
            tensor = whole(sharded[name].detach())
            if processes.is_main():
                weights[parameter] = tensor
        self._fill(weights)
        return self.model.train(model.training)

    def _fill(self, weights: dict[nn.Parameter, Tensor]) -> None:
        """Replace parameters, wherever they stand in the model."""
        new = {p: nn.Parameter(t, requires_grad=p.requires_grad) for p, t in weights.items()}
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if parameter in new:
                    module.register_parameter(name, new[parameter])
