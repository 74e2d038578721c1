"""Tiny bases of many architectures: `benchmarks/architectures.py`, for the tests."""

import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig


sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from architectures import ARCHITECTURES, LEAVE_OUT, SIZES, make, tokenizer


__all__ = ["ARCHITECTURES", "config_of", "make", "tokenizer"]


def config_of(name: str, **over: Any) -> Any:
    """The config of a tiny base of that architecture."""
    sizes = {**SIZES, **ARCHITECTURES[name][1], **over}
    return AutoConfig.for_model(name, **{k: v for k, v in sizes.items() if v is not LEAVE_OUT})
