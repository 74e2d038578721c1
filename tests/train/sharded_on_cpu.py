"""Lets accelerate shard weights on the CPU as well (FSDP2 over gloo), which it does not by itself.

It is what these tests change, and nothing else: torch's `fully_shard` does the rest as on a GPU.
"""

import os
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from perdure.prepare import settings


ACCELERATE = "ACCELERATE_USE_FSDP"
VARIABLES = {
    ACCELERATE: "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # the default of `accelerate launch`
}


def shard_on_the_cpu() -> None:
    """Change accelerate in this process, and set what `accelerate launch --use_fsdp` sets."""
    begin: Any = AcceleratorState.__init__

    def begin_sharded(self: Any, *arguments: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    if ACCELERATE not in os.environ:
        AcceleratorState.__init__ = begin_sharded
        settings.can_shard = lambda: True
    os.environ.update(VARIABLES)
