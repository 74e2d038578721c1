"""The factors of a model's LoRA layers."""

from collections.abc import Iterator
from typing import NamedTuple

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class Factors(NamedTuple):
    """The LoRA of a layer: delta W = scaling B A, with A [r, in] and B [out, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    def delta(self) -> Tensor:
        """The matrix delta W [out, in], in fp32."""
        return self.scaling * self.b.detach().float() @ self.a.detach().float()


def layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The modules that have LoRA, with their names, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def factors(model: nn.Module, adapter: str = "default") -> dict[str, Factors]:
    """The factors of one adapter, by the name of the adapted layer."""
    return {
        name: Factors(
            layer.lora_A[adapter].weight,  # type: ignore[arg-type]
            layer.lora_B[adapter].weight,  # type: ignore[arg-type]
            layer.scaling[adapter],
        )
        for name, layer in layers(model)
        if adapter in layer.lora_A
    }
