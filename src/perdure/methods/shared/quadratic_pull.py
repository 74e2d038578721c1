"""The base class of the methods that pull the weights towards earlier ones by a quadratic penalty.

    penalty    strength / 2 sum_j precision_j (w_j - centre_j)^2
    gradient   strength (precision w - moment),   moment = precision centre

`L2`, `EWC`, `MAS` and `SI` differ only in the precision.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.models.sharded import as_sharded
from perdure.train.method import Family, Method, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, trained


class Parabola:
    """The sum of the penalties of all tasks, without the strength; it is one parabola.

    The tensors are named after the parameters. If an encoder's head has grown since then, its new
    rows are not pulled (`fits`).

    Args:
        moment: precision times centre, summed over the tasks.
        precision: the precision, summed over the tasks; None means 1 for every weight.
    """

    def __init__(self, moment: Named, precision: Named | None):
        self.moment, self.precision = moment, precision

    def add(self, precision: Named, centre: Named) -> None:
        """Add the parabola of a new task, with its own centre."""
        assert self.precision is not None
        for name, new in precision.items():
            self.precision[name] = _sum(self.precision.get(name), new)
            self.moment[name] = _sum(self.moment.get(name), new * centre[name])

    def move(self, precision: Named, centre: Named, decay: float) -> None:
        """Move the parabola to `centre`, decay its precision, and add the new one."""
        assert self.precision is not None
        for name, new in precision.items():
            old = self.precision.get(name)
            self.precision[name] = _sum(None if old is None else decay * old, new)
            self.moment[name] = self.precision[name] * centre[name]

    @torch.no_grad()
    def add_gradient(self, model: nn.Module, strength: float) -> None:
        """Add the gradient of the penalty to the `.grad` of the model's trained parameters."""
        for name, p in trained(model).items():
            if name not in self.moment or p.grad is None:
                continue
            rows = len(self.moment[name])  # fewer than the rows of p if p has grown
            weights, gradient = (p, p.grad) if rows == len(p) else (p[:rows], p.grad[:rows])
            moment = self.moment[name] = as_sharded(self.moment[name], weights)
            weighted: Tensor = weights
            if self.precision is not None:
                precision = self.precision[name] = as_sharded(self.precision[name], weights)
                weighted = precision * weights
            gradient += strength * (weighted - moment)

    def fits(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether its tensors have the shapes of the parameters; a head may have more rows."""
        shapes = {name: parameters[name].shape for name in self.moment if name in parameters}
        return all(
            old.shape[1:] == shapes[name][1:] and len(old) <= shapes[name][0]
            if name in HEAD_NAMES
            else old.shape == shapes[name]
            for name, old in self.moment.items()
            if name in shapes
        )

    @torch.no_grad()
    def recentre(self, model: nn.Module) -> None:
        """Move the parabola to the present weights of the model, with the same precision."""
        assert self.precision is not None
        parameters = dict(model.named_parameters())
        for name in self.moment:
            if name in parameters:
                rows, weights = len(self.moment[name]), parameters[name]
                weights = weights if rows == len(weights) else weights[:rows]  # of a head that grew
                precision = as_sharded(self.precision[name], weights)
                self.precision[name], self.moment[name] = precision, precision * weights


def _sum(old: Tensor | None, new: Tensor) -> Tensor:
    """The sum of two tensors, of which the new one may have more rows (an encoder's head)."""
    total = new.clone()
    if old is not None:
        total[: len(old)] += old.to(new.device)
    return total


class QuadraticPull(Method):
    """A method that consists of a precision, measured at the end of each task, and a centre.

    The gradient of the penalty is added in closed form, once in each optimizer step and before
    clipping, so it does not depend on gradient accumulation. It also holds in the steps that other
    methods take on memory. The centre is the weights with which the next task begins
    (`Engine.next_start`), after the changes by other methods. After stages that were made without
    the method, `newest` pulls towards the weights with which this task begins.

    If the weights have other shapes than those that were measured (a merge has given a LoRA another
    rank), nothing is left to be pulled. The method then warns and begins anew.

    A subclass overrides `measure_precision`, or sets `uniform`: then every weight is pulled with
    the same strength, and the stored state is the centre, under the names of the parameters.
    Otherwise the state is `p.NAME` (the precision) and `m.NAME` (precision times centre), two
    tensors for each trained parameter, whatever the number of tasks.

    Args:
        strength: the strength of the pull, >= 0; with 0, training is bitwise unchanged.
        decay: the factor on the precision of the earlier tasks when a task is added, 0 to 1.
        centre: `newest` pulls towards the newest weights, with the precisions of all tasks added
            up; `each` keeps the centre of each task.

    Raises:
        PerdureError: a value is out of its range.
    """

    family: ClassVar[Family] = "regularisation"
    follows: ClassVar[bool] = True
    pulls: ClassVar[bool] = True
    end_phase: ClassVar[Literal[2]] = 2
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    uniform: ClassVar[bool] = False
    # The derivative of strength / 2 x^2 is strength x; 2 for papers that leave out the 1/2.
    factor: ClassVar[float] = 1.0

    def __init__(
        self, strength: float, decay: float = 1.0, centre: Literal["newest", "each"] = "newest"
    ):
        if strength < 0:
            raise PerdureError(
                f"{self.name}: strength must be >= 0, got {strength}; 0 does not pull"
            )
        if not 0 <= decay <= 1:
            raise PerdureError(f"{self.name}: decay must be from 0 to 1, got {decay}")
        self.strength, self.decay, self.centre = strength, decay, centre

    def measure_precision(self, model: nn.Module) -> Named:
        """How strongly each trained weight is pulled on behalf of the task that has just ended."""
        raise NotImplementedError

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.load_state_dict(context.state)
        if not self.parabola.fits(dict(model.named_parameters())):
            self._start_anew()
        return super().begin_task(model, context)

    def _start_anew(self) -> None:
        """Drop a state whose tensors do not fit the weights."""
        warnings.warn(
            f"{self.label}: the weights have other shapes than those it has measured (a merge or "
            "another method has changed the rank of the adapter), so what was learned before this "
            "task is not protected",
            stacklevel=2,
        )
        self.load_state_dict({})

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        # All methods have begun the task. If a run is resumed, `load_state_dict` is called after
        # this and replaces the centre.
        if self.centre == "newest" and not self.uniform and not self.context.is_newest:
            self.parabola.recentre(model)

    def add_penalty(self, model: nn.Module) -> None:
        self.parabola.add_gradient(model, self.factor * self.strength)

    def edit_gradients(self, model: nn.Module) -> None:
        self.add_penalty(model)

    def end_task(self, model: nn.Module) -> None:
        if self.uniform:
            self.parabola = Parabola(self.engine.next_start(), None)
            return
        precision = self.measure_precision(model)
        if self.centre == "newest":
            self.parabola.move(precision, self.engine.next_start(), self.decay)
        else:
            self.parabola.add(precision, self.engine.next_start())

    def state_dict(self) -> dict[str, Tensor]:
        moment, precision = self.parabola.moment, self.parabola.precision
        if precision is None:
            return moment
        return {f"p.{name}": tensor for name, tensor in precision.items()} | {
            f"m.{name}": tensor for name, tensor in moment.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.uniform:
            self.parabola = Parabola(dict(state), None)
        else:
            self.parabola = Parabola(starting_with("m.", state), starting_with("p.", state))


def starting_with(prefix: str, state: Named) -> Named:
    """The tensors whose names start with `prefix`, by their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
