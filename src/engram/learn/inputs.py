"""What the layers of a model are fed by rows of data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engram.learn.methods.base import Engine
from engram.learn.pull import Named


def second_moments(
    engine: Engine, modules: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> Named:
    """C = mean of x x^T over the tokens x that each module is fed, in fp32, [inputs, inputs].

    It is zero where a module is fed none. Rows are taken one by one, so that none is padded: of an
    encoder-decoder a module is fed tokens of either half, and no mask has to be guessed.
    """
    sums: Named = {}
    counts = dict.fromkeys(modules, 0)

    def added(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            with torch.autocast(args[0].device.type, enabled=False):
                x = args[0].detach().float().flatten(0, -2)
                sums[name] = x.mT @ x + sums.get(name, 0)
            counts[name] += len(x)

        return hook

    hooks = [module.register_forward_pre_hook(added(name)) for name, module in modules.items()]
    for row in rows:
        engine.look([row])
    for hook in hooks:
        hook.remove()
    for name, module in modules.items():
        sums.setdefault(name, torch.zeros(module.in_features, module.in_features))
    return {name: sums[name] / max(1, counts[name]) for name in modules}
