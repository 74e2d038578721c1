"""A quadratic pull towards earlier weights, as a gradient in closed form.

    penalty   strength / 2 sum_j precision_j (w_j - centre_j)^2
    gradient  strength (precision w - moment),   moment = precision centre

Several centres add up in (precision, moment), whatever their number. Tensors go by the parameter's
name; where a parameter has grown since (an encoder's head), its new rows are free.
"""

import torch
from torch import Tensor, nn

from engram.train.parameters import Named, trained


class Sums:
    """The sums (precision, moment) over tasks, and how they are stored."""

    def __init__(self, state: Named):
        self.precision = {k[2:]: v for k, v in state.items() if k.startswith("p.")}
        self.moment = {k[2:]: v for k, v in state.items() if k.startswith("m.")}

    def add(self, precision: Named, centre: Named) -> None:
        """One more parabola."""
        for name, new in precision.items():
            self.precision[name] = _onto(self.precision.get(name), new)
            self.moment[name] = _onto(self.moment.get(name), new * centre[name])

    def move(self, precision: Named, centre: Named, decay: float) -> None:
        """One parabola around `centre`, with what the old ones weighed times `decay` in it."""
        for name, new in precision.items():
            old = self.precision.get(name)
            self.precision[name] = _onto(None if old is None else decay * old, new)
            self.moment[name] = self.precision[name] * centre[name]

    def tensors(self) -> Named:
        return {f"p.{k}": v for k, v in self.precision.items()} | {
            f"m.{k}": v for k, v in self.moment.items()
        }


def _onto(old: Tensor | None, new: Tensor) -> Tensor:
    """Old + new, where new may have more rows."""
    summed = new.clone()
    if old is not None:
        summed[: len(old)] += old.to(new.device)
    return summed


@torch.no_grad()
def pull(model: nn.Module, strength: float, precision: Named | None, moment: Named) -> None:
    """Add the gradient of the penalty to `.grad`; a `precision` of None is 1 everywhere."""
    for name, p in trained(model).items():
        if name not in moment or p.grad is None:
            continue
        centre = moment[name].to(p.device)
        old = len(centre)
        weighed = p[:old] if precision is None else precision[name].to(p.device) * p[:old]
        p.grad[:old] += strength * (weighed - centre)
