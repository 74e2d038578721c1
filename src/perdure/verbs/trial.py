"""What `init` tries of an adapter, so that nothing fails after hours of training.

On one short text: that a step trains it, that it comes back from a stage's files as it was, that
the base is itself again when it is switched off, and that it merges into the weights for an export.
It is found by trying, not by a list of settings, so what PEFT adds in later releases is tried too.
"""

import contextlib
import math
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.errors import PerdureError
from perdure.models.base import Base, is_quantized, one_line
from perdure.models.merging import merge
from perdure.models.sample import alike, forward, sample_output
from perdure.models.stage_files import load_weights, save_weights
from perdure.models.traces import sharing_copy
from perdure.seeds import derive, forked


FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError),
    *(ImportError, AssertionError, OSError, PerdureError),
)
MOST_COPIED = 2**31  # bytes that a trial may take beside the base
NOISE = 0.02  # standard deviation of what is added to the trained weights
USUAL = ("peft_type", "r", "lora_alpha", "lora_dropout", "task_type")
# Starts that PEFT computes from rows that it is given in Python.
FROM_ROWS = ("eva", "corda", "lora_ga")


class Trial:
    """`see` the base without its adapter, then `check` it with the adapter on.

    What is tried is a copy that shares the base's weights. Where that is not possible, or would
    take much memory, it is the base itself, which is `used_up` then.
    """

    def __init__(self, adapter: dict[str, Any]):
        self.adapter = adapter
        self.weights: list[tuple[Tensor, Tensor]] = []
        self.output: Tensor | None = None
        self.used_up = False

    def see(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Remember what the base says, and some of every weight."""
        self.weights = [(weight, _some(weight)) for weight in model.parameters()]
        tried = sharing_copy(model, trained=False)
        self.used_up = tried is None
        with contextlib.suppress(*FAILURES):  # what the base alone cannot do is said elsewhere
            self.output = sample_output(model if tried is None else tried, tokenizer)

    def check(self, base: Base) -> None:
        """Try the adapter.

        Raises:
            PerdureError: with the settings, and what would fail.
        """
        if any(not torch.equal(_some(weight), before) for weight, before in self.weights):
            self._refuse_start()
        if self.output is None:
            return
        shared = Counter(
            p.untyped_storage().data_ptr()
            for p in base.peft.parameters()
            if p.requires_grad and p.numel()
        )
        if max(shared.values(), default=1) > 1:
            self._refuse("two trained weights are one memory, which would be updated twice")
        copied = sharing_copy(base.model) if _copied_bytes(base) <= MOST_COPIED else None
        self.used_up = self.used_up or copied is None
        base = base if copied is None else replace(base, model=copied)
        with forked(derive(0, "trial")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns of is tried
            learned = self._learn(base)
            self._check_files(base, learned)
            if base.kind != "encoder":  # which is not scored without a head, nor taught by its base
                self._check_off(base)
            if not is_quantized(base):  # exported unquantised
                self._check_merged(base, learned)

    def _learn(self, base: Base) -> Tensor:
        """A step's forward and backward pass, and the output with weights that have moved."""
        trained = [p for p in base.peft.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in trained]
        _move(trained)
        try:
            base.network.train()
            loss = forward(base.network, base.tokenizer).float().square().mean()
            if loss.requires_grad:
                loss.backward()
            # What gets no gradient stays as it begins: some layers read their weights themselves.
            with torch.no_grad():
                for parameter, beginning in zip(trained, start, strict=True):
                    if parameter.grad is None:
                        parameter.copy_(beginning)
            learned = sample_output(base.network, base.tokenizer)
        except FAILURES as error:
            self._refuse(f"a step of training fails ({one_line(error)})")
        if all(p.grad is None for p in trained):
            self._refuse("what it trains takes no part in what the base says")
        base.network.zero_grad()
        return learned

    def _check_files(self, base: Base, learned: Tensor) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                save_weights(base, Path(folder))
                _move([p for p in base.peft.parameters() if p.requires_grad])
                load_weights(base, Path(folder), head=False)
                reloaded = sample_output(base.network, base.tokenizer)
            except FAILURES as error:
                reason = one_line(error).removeprefix(f"{folder}: ")
                self._refuse(f"its files cannot be written and read ({reason})")
        if not torch.equal(reloaded, learned):
            self._refuse("it does not come back from its files as it was")

    def _check_off(self, base: Base) -> None:
        assert self.output is not None
        try:
            with base.peft.disable_adapter():
                switched_off = sample_output(base.network, base.tokenizer)
        except FAILURES as error:
            self._refuse(f"it cannot be switched off ({one_line(error)})")
        if not alike(switched_off, self.output, 1e-5 if _dtype(base) == torch.float32 else 1e-2):
            self._refuse("switched off, it does not leave the base as it was")

    def _check_merged(self, base: Base, learned: Tensor) -> None:
        dtype = _dtype(base)
        try:
            merged = merge(base.peft)
        except NotImplementedError:  # `export` says so; the stage can be served with PEFT
            return
        except AttributeError:  # no kind of adapter that merges, such as prefix tuning
            return
        except FAILURES as error:
            self._refuse(f"it would not merge for an export ({one_line(error)})")
        merged_output = sample_output(merged, base.tokenizer)
        if not alike(merged_output, learned, 1e-3 if dtype == torch.float32 else 0.1):
            self._refuse("merged into the weights for an export it would be another model")

    def _refuse(self, why: str) -> Any:
        settings = {k: v for k, v in self.adapter.items() if k not in USUAL}
        named = ", ".join(f"{key}={value}" for key, value in settings.items()) or "these settings"
        raise PerdureError(f"adapter: {named}: {why}; leave out what causes it")

    def _refuse_start(self) -> Any:
        start = self.adapter.get("init_lora_weights")
        named = f"init_lora_weights={start}" if start else "this adapter"
        raise PerdureError(
            f"adapter: {named} changes the base's weights as it begins, so the base would not be "
            "itself when it is switched off; leave it out, or give the folder of an adapter that "
            "was converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )


def check_start(adapter: dict[str, Any]) -> None:
    """Refuse a start of LoRA that needs rows, which there are none of when a lineage is made.

    Raises:
        PerdureError: with the start.
    """
    start = adapter.get("init_lora_weights")
    if start in FROM_ROWS:
        raise PerdureError(
            f"adapter: init_lora_weights={start} is computed from rows, and there are none at "
            "`init`; leave it out, or make the adapter with PEFT and give its folder"
        )


def _move(trained: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)


def _copied_bytes(base: Base) -> float:
    """What merging the adapter writes anew: the weights that it sits on."""
    if is_quantized(base):  # whose weights are more than their tensors
        return math.inf
    layers = [m for m in base.peft.modules() if isinstance(m, BaseTunerLayer)]
    return sum(p.nbytes for layer in layers for p in layer.get_base_layer().parameters())


def _some(weight: Tensor) -> Tensor:
    """A thousand of a tensor's values, spread over all of it."""
    return weight.detach().flatten()[:: max(1, weight.numel() // 1000)].clone()


def _dtype(base: Base) -> torch.dtype:
    network: Any = base.peft.get_base_model()
    return network.dtype
