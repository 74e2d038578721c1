"""Half fine-tuning."""

import random
import re
from typing import Any, ClassVar, Literal

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.shares import floor_share
from perdure.seeds import derive
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import trained


class HFT(Method):
    """Freezes half of the matrices while a task is learned, a different half for each task.

    Matrices that have the same role in each layer are of one kind. Of every kind, the matrices of a
    random `share` of the layers are frozen (rounded down), and the layers are drawn again at every
    stage (Hui et al. 2024, 2404.18466). The authors draw 2 of 4 attention matrices and 1 or 2 of 3
    feed-forward matrices in every layer, by their names in Llama; drawing over the layers freezes
    as many and needs no names. The two matrices of a LoRA pair are frozen together. Weights that
    the model has only once (embeddings, heads) are trained. Frozen weights do not change at all,
    because they are not in the optimizer; `slao`, which changes every LoRA pair between tasks, is
    refused beside it. With grouped queries, half of the matrices is not half of the parameters.

    State: none. Old rows: none. Cost: less than `sequential`, as frozen weights have no moments.

    Args:
        share: the share of the matrices of each kind to freeze, 0 to 1.
        first: whether to freeze in the first task too, to protect what pre-training taught.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/2404.18466"
    begin_phase: ClassVar[Literal[1]] = 1
    end_phase: ClassVar[Literal[1]] = 1
    neutral: ClassVar[dict[str, Any]] = {"share": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.08, second_loss=0.3)

    def __init__(self, share: float = 0.5, first: bool = False):
        if not 0 <= share <= 1:
            raise PerdureError(f"hft: share must be from 0 to 1, got {share}; 0.5 is half")
        self.share, self.first = share, first

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        parameters, self.frozen = trained(model), []
        if context.stage > 1 or self.first:
            for kind, layers in _kinds(list(parameters)).items():
                draw = random.Random(derive(context.seed, "freeze", kind))
                for layer in draw.sample(sorted(layers), floor_share(self.share, len(layers))):
                    self.frozen += [parameters[name] for name in layers[layer]]
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        return super().begin_task(model, context)

    def end_task(self, model: nn.Module) -> None:
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.frozen = []


def _kinds(names: list[str]) -> dict[str, dict[str, list[str]]]:
    """The names of the parameters, by the kind of matrix and the layer.

    The kind is the name of the module without the number of its layer. Kinds that only one layer
    has are left out.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for name in names:
        module = re.sub(r"\.(lora_\w+\..*|weight|bias)$", "", name)
        layer = re.search(r"\.(\d+)\.", module)
        if layer:
            kind = module[: layer.start(1)] + "N" + module[layer.end(1) :]
            kinds.setdefault(kind, {}).setdefault(layer[1].zfill(6), []).append(name)
    return {kind: layers for kind, layers in kinds.items() if len(layers) > 1}
