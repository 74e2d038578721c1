"""Orthogonal low-rank adapters."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.shared import adapter_bank
from perdure.methods.shared.lora import factors
from perdure.models.kinds import Kind
from perdure.train.method import Family, Keeps, Method, TaskContext


class OLoRA(Method):
    """Learns each task in a LoRA adapter of its own, orthogonal to the frozen ones of old tasks.

        loss = task + strength sum over layers of sum_ij |A_old A_new^T|_ij

    The model uses the sum of all adapters (Wang et al. 2023, 2310.14152). The term is zero if each
    row of A_new is orthogonal to all rows of A_old, so that the new adapter reads other directions
    of the input than the old ones; its B is not constrained. As in the authors' code, the term is
    an L1 norm summed over layers: it grows with the model and with the number of tasks, and starts
    in the hundreds or thousands. Their second term, on the norm of the new factors, has weight 0 in
    their runs and is left out.

    After a task, its adapter is joined to the old ones by rank, which is exact: a stage is one
    plain adapter of rank r times the number of tasks, and inference does not need to know the task.
    Each task's factors are stored once: only the newest stage has a file of its adapter, whose
    first ranks are the adapters of the earlier stages, and what damages it damages them too. A verb
    that needs one of these cuts it out, bit by bit. For another program, `perdure export FOLDER OUT
    --adapter --stage N` writes the adapter of stage N into a folder of its own.

    State: the rank of one task; the adapter grows, O(tasks). Old rows: none. Cost: one product of
    small matrices for each layer. The first task is plain fine-tuning. There are no neutral
    keywords: even with strength 0 each task has its own adapter.

    Args:
        strength: lambda, >= 0.
    """

    family: ClassVar[Family] = "adapters"
    paper: ClassVar[str] = "https://huggingface.co/papers/2310.14152"
    needs: ClassVar[Literal["lora"]] = "lora"
    reshapes: ClassVar[bool] = True
    keeps: ClassVar[Keeps] = Keeps(share=0.4, second_loss=0.4)

    def __init__(self, strength: float = 0.5):
        if strength < 0:
            raise PerdureError(f"olora: strength must be >= 0, got {strength}")
        self.strength = strength
        self.rank_of_task: int | None = None

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        adapter_bank.check(self.name, config)
        self.rank_of_task = adapter_bank.rank_of_task(config)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        stored_rank = adapter_bank.rank(model)  # of all tasks, if other methods have joined some
        self.rank = context.state.get("rank", torch.tensor(self.rank_of_task or stored_rank))
        if context.state or not context.is_newest:  # an adapter that another method trained is old
            adapter_bank.add(model, int(self.rank), context.seed)
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        assert model is not None
        old = factors(model, adapter_bank.OLD)
        self.pairs = [
            (old[name].a, new.a) for name, new in factors(model, adapter_bank.NEW).items()
        ]

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> Any:
        if not self.pairs:
            return None
        with torch.autocast(outputs.logits.device.type, enabled=False):
            overlaps = [(old.float() @ new.float().mT).abs().sum() for old, new in self.pairs]
        return self.strength * torch.stack(overlaps).sum()

    def end_task(self, model: nn.Module) -> None:
        self.pairs = []
        adapter_bank.join(model)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rank": self.rank}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rank = state["rank"]
