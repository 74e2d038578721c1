"""Which weights of a base an adapter is put on, where neither the user nor PEFT says it."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from engram.errors import EngramError
from engram.models.base import with_adapter
from engram.models.kinds import Kind
from engram.models.limits import skeleton


_FITTING: dict[tuple[str, str], dict[str, Any]] = {}


def fitting_adapter(config: Any, kind: Kind, adapter: dict[str, Any]) -> dict[str, Any]:
    """`adapter` with what PEFT needs to be told on this base, where our own defaults do not fit.

    Where PEFT knows no targets for the family, these are all linear layers, or those of them that
    it takes; where it wraps experts, whose dropout it cannot do, `lora_dropout` is 0. What the user
    has set stays.
    """
    key = (config.to_json_string(use_diff=False), json.dumps(adapter, sort_keys=True, default=str))
    if key not in _FITTING:
        offers = _offers(config, kind, adapter)
        fitting = (offer for offer in offers if _carries(config, kind, {**adapter, **offer}))
        _FITTING[key] = next(fitting, {})  # if none fits, loading says what is wrong
    return {**adapter, **_FITTING[key]}


def _offers(config: Any, kind: Kind, adapter: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What may be laid over the settings, in the order in which it is tried."""
    lora = str(adapter.get("peft_type", "LORA")).upper() == "LORA"
    dropout: dict[str, Any] = {"lora_dropout": 0.0}
    droppable = lora and adapter.get("lora_dropout") is None
    yield {}
    if droppable:
        yield dropout
    if any(adapter.get(key) is not None for key in ("target_modules", "target_parameters")):
        return
    everywhere = {"target_modules": "all-linear"}
    yield everywhere
    if droppable:
        yield {**everywhere, **dropout}
    names = _linear_names(config, kind)
    taken = [n for n in names if _carries(config, kind, {**adapter, "target_modules": [n]})]
    if taken:
        yield {"target_modules": taken}


def _linear_names(config: Any, kind: Kind) -> list[str]:
    """The last parts of the linear layers' names, but the output's."""
    model = skeleton(config, kind)
    if model is None:
        return []
    head = model.get_output_embeddings()
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m != head]
    return sorted({name.rpartition(".")[2] for name in linear})


def check_carries(config: Any, kind: Kind, adapter: dict[str, Any]) -> None:
    """Put the adapter on the base without its weights; what needs these is tried with them later.

    Raises:
        EngramError: settings that PEFT does not take on this base.
    """
    model = skeleton(config, kind)
    if model is None:
        return
    try:  # how it would begin needs weights
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading says them
            tried = {k: v for k, v in adapter.items() if k != "init_lora_weights"}
            with_adapter(model, kind, tried, 0)
    except EngramError as error:
        if isinstance(error.__cause__, TypeError | ValueError | None):
            raise


def _carries(config: Any, kind: Kind, adapter: dict[str, Any]) -> bool:
    try:
        check_carries(config, kind, adapter)
    except EngramError:
        return False
    return True
