"""Choosing the weights that an adapter is put on, if neither the user nor PEFT names them."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from perdure.errors import PerdureError
from perdure.models.base import with_adapter
from perdure.models.kinds import Kind
from perdure.models.limits import skeleton


_FITTING: dict[tuple[str, str], dict[str, Any]] = {}


def fitting_adapter(config: Any, kind: Kind, adapter: dict[str, Any]) -> dict[str, Any]:
    """Return `adapter` with the settings that this base needs where the defaults do not fit.

    If PEFT has no default targets for the family, the targets are all linear layers, or those that
    PEFT accepts. If PEFT wraps experts, for which it has no dropout, `lora_dropout` is 0. Settings
    of the user are not changed.
    """
    key = (config.to_json_string(use_diff=False), json.dumps(adapter, sort_keys=True, default=str))
    if key not in _FITTING:
        candidates = _candidates(config, kind, adapter)
        fitting = (
            additions for additions in candidates if fits(config, kind, {**adapter, **additions})
        )
        _FITTING[key] = next(fitting, {})  # if none fits, loading reports what is wrong
    return {**adapter, **_FITTING[key]}


def _candidates(config: Any, kind: Kind, adapter: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield additions to the settings, in the order in which they are tried."""
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
    accepted = [name for name in names if fits(config, kind, {**adapter, "target_modules": [name]})]
    if accepted:
        yield {"target_modules": accepted}


def _linear_names(config: Any, kind: Kind) -> list[str]:
    """Return the last parts of the names of all linear layers except the output layer."""
    model = skeleton(config, kind)
    if model is None:
        return []
    head = model.get_output_embeddings()
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m != head]
    return sorted({name.rpartition(".")[2] for name in linear})


def check_carries(config: Any, kind: Kind, adapter: dict[str, Any]) -> None:
    """Check the settings of an adapter on the base's architecture, without its weights.

    Settings that need weights are only checked when the base is loaded.

    Raises:
        PerdureError: PEFT refuses the settings for this base.
    """
    model = skeleton(config, kind)
    if model is None:
        return
    # Some ways to initialise an adapter need the base's weights.
    settings = {key: value for key, value in adapter.items() if key != "init_lora_weights"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when the base is loaded
            with_adapter(model, kind, adapter=settings, seed=0)
    except PerdureError as error:
        if isinstance(error.__cause__, TypeError | ValueError | None):
            raise


def fits(config: Any, kind: Kind, adapter: dict[str, Any]) -> bool:
    try:
        check_carries(config, kind, adapter)
    except PerdureError:
        return False
    return True
