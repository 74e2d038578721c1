"""What `methods.py` compares: for each method its three trials, one keyword or the rate apart."""

from dataclasses import dataclass, field
from typing import Any


RATE = 1e-3  # the best of the trials of `sequential`, and everyone's where another keyword is tried
RATES = (5e-4, 1e-3, 2e-3)
WHOLE_RATES = (2e-5, 5e-5, 1e-4)


@dataclass(frozen=True)
class Trial:
    """A method as it stands under `method:`, its learning rate, and what else is set."""

    method: Any
    rate: float = RATE
    changed: dict[str, Any] = field(default_factory=dict)


def rates(method: Any, of: tuple[float, ...] = RATES, **changed: Any) -> list[Trial]:
    return [Trial(method, rate, changed) for rate in of]


def keyword(name: str, key: str, *values: Any, **more: Any) -> list[Trial]:
    return [Trial({name: {key: value, **more}}) for value in values]


TRIALS: dict[str, list[Trial]] = {
    "sequential": rates("sequential"),
    "joint": rates("sequential"),  # on the union of the tasks, from the base: the upper bound
    "replay": rates({"replay": {"ratio": 0.5}}),
    "recurrent_kif_paper": rates({"recurrent_kif": {"preset": "paper"}}),
    "recurrent_kif_release": rates({"recurrent_kif": {"preset": "release"}}),
    "l2": keyword("l2", "strength", 0.1, 1.0, 10.0),
    "ewc": keyword("ewc", "strength", 1e2, 1e3, 1e4),
    "mas": keyword("mas", "strength", 0.1, 1.0, 10.0),
    "lwf": keyword("lwf", "strength", 0.3, 1.0, 3.0),
    "agem": rates("agem"),
    "hft": rates("hft"),
    "wise_ft": keyword("wise_ft", "share", 0.3, 0.5, 0.7),
}
