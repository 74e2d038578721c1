"""Whether a process has all weights of a model."""

from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.tensor import DTensor


SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights of a Trainer's model are spread over several processes.

    True under FSDP, DeepSpeed, Megatron-LM and tensor parallelism.
    """
    parts = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return AcceleratorState().distributed_type in SHARDED or parts
