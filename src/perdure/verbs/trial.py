"""The trial of an adapter that `init` makes, so that nothing fails after hours of training.

One short text is used to test that a training step changes the adapter, that the adapter can be
saved and loaded without a change, that disabling it gives the base's outputs, and that it can be
merged into the weights for an export. Since nothing depends on a list of settings, the adapters of
later PEFT releases are tested as well.
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

from perdure.errors import PerdureError, one_line
from perdure.models.base import Base, is_quantized
from perdure.models.merging import merge
from perdure.models.sample import alike, forward, sample_output
from perdure.models.stage_files import load_weights, save_weights
from perdure.models.traces import sharing_copy
from perdure.seeds import derive, forked
from perdure.writing import why, writing


FAILURES = (
    *(RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError),
    *(ImportError, AssertionError, OSError, PerdureError),
)
MOST_COPIED = 2**31  # the most bytes that a trial may use in addition to the base
NOISE = 0.02  # standard deviation of the noise that is added to the trained weights
USUAL = ("peft_type", "r", "lora_alpha", "lora_dropout", "task_type")
# Initialisations that PEFT computes from rows that are passed to it in Python.
FROM_ROWS = ("eva", "corda", "lora_ga")


class Trial:
    """A trial of an adapter: `see` the base without it, then `check` the base with it.

    The trial uses a copy that shares the base's weights. If this is not possible or takes too much
    memory, it uses the base itself, and sets `used_up`.
    """

    def __init__(self, adapter: dict[str, Any]):
        self.adapter = adapter
        self.weights: list[tuple[Tensor, Tensor]] = []
        self.output: Tensor | None = None
        self.used_up = False

    def see(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Store the base's output, and a sample of every weight."""
        self.weights = [(weight, _sample(weight)) for weight in model.parameters()]
        copied = sharing_copy(model, trained=False)
        self.used_up = copied is None
        with contextlib.suppress(*FAILURES):  # a base that fails by itself is reported elsewhere
            self.output = sample_output(model if copied is None else copied, tokenizer)

    def check(self, base: Base) -> None:
        """Test the adapter.

        Raises:
            PerdureError: something would fail; the line has it and the settings.
        """
        if any(not torch.equal(_sample(weight), before) for weight, before in self.weights):
            self._refuse_start()
        if self.output is None:
            return
        shared = Counter(
            p.untyped_storage().data_ptr()
            for p in base.peft.parameters()
            if p.requires_grad and p.numel()
        )
        if max(shared.values(), default=1) > 1:
            self._refuse("two trained weights share their memory, which would be updated twice")
        copied = sharing_copy(base.model) if _copied_bytes(base) <= MOST_COPIED else None
        self.used_up = self.used_up or copied is None
        base = base if copied is None else replace(base, model=copied)
        with forked(derive(0, "trial")), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trial tests what PEFT warns about
            learned = self._learn(base)
            self._check_files(base, learned)
            if base.kind != "encoder":  # an encoder's base is never used without the head
                self._check_off(base)
            if not is_quantized(base):  # a quantised base is exported unquantised
                self._check_merged(base, learned)

    def _learn(self, base: Base) -> Tensor:
        """Run a forward and a backward pass; return the output after the weights have changed."""
        trained = [p for p in base.peft.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in trained]
        _move(trained)
        try:
            base.network.train()
            loss = forward(base.network, base.tokenizer).float().square().mean()
            if loss.requires_grad:
                loss.backward()
            # A weight without a gradient gets its initial value back: training would not change it.
            with torch.no_grad():
                for parameter, beginning in zip(trained, start, strict=True):
                    if parameter.grad is None:
                        parameter.copy_(beginning)
            learned = sample_output(base.network, base.tokenizer)
        except FAILURES as error:
            self._refuse(f"a step of training fails ({one_line(error)})")
        if all(p.grad is None for p in trained):
            self._refuse("the weights that it trains do not affect the output")
        base.network.zero_grad()
        return learned

    def _check_files(self, base: Base, learned: Tensor) -> None:
        with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
            try:
                save_weights(base, Path(folder))
                _move([p for p in base.peft.parameters() if p.requires_grad])
                load_weights(base, Path(folder), head=False)
                reloaded = sample_output(base.network, base.tokenizer)
            except FAILURES as error:
                if why(error):  # the adapter is not to blame
                    raise
                reason = one_line(error).removeprefix(f"{folder}: ")
                self._refuse(f"its files cannot be written and read ({reason})")
        if not torch.equal(reloaded, learned):
            self._refuse("its output changes when it is saved and loaded")

    def _check_off(self, base: Base) -> None:
        assert self.output is not None
        try:
            with base.peft.disable_adapter():
                switched_off = sample_output(base.network, base.tokenizer)
        except FAILURES as error:
            self._refuse(f"it cannot be disabled ({one_line(error)})")
        if not alike(switched_off, self.output, 1e-5 if _dtype(base) == torch.float32 else 1e-2):
            self._refuse("disabling it does not give the base's output")

    def _check_merged(self, base: Base, learned: Tensor) -> None:
        dtype = _dtype(base)
        try:
            merged = merge(base.peft)
        except NotImplementedError:  # `export` reports it; the stage can be served with PEFT
            return
        except AttributeError:  # a kind of adapter that is never merged, such as prefix tuning
            return
        except FAILURES as error:
            self._refuse(f"it could not be merged for an export ({one_line(error)})")
        merged_output = sample_output(merged, base.tokenizer)
        if not alike(merged_output, learned, 1e-3 if dtype == torch.float32 else 0.1):
            self._refuse("merging it into the weights for an export would change the output")

    def _refuse(self, reason: str) -> Any:
        settings = {k: v for k, v in self.adapter.items() if k not in USUAL}
        shown = ", ".join(f"{key}={value}" for key, value in settings.items()) or "these settings"
        raise PerdureError(f"adapter: {shown}: {reason}; leave out what causes it")

    def _refuse_start(self) -> Any:
        start = self.adapter.get("init_lora_weights")
        shown = f"init_lora_weights={start}" if start else "this adapter"
        raise PerdureError(
            f"adapter: {shown} changes the base's weights when it is created, so that disabling it "
            "does not give the base; leave it out, or give the folder of an adapter that was "
            "converted to plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )


def check_start(adapter: dict[str, Any]) -> None:
    """Refuse an initialisation of LoRA that needs rows, because `init` has none.

    Raises:
        PerdureError: the adapter has such an initialisation.
    """
    start = adapter.get("init_lora_weights")
    if start in FROM_ROWS:
        raise PerdureError(
            f"adapter: init_lora_weights={start} is computed from rows, but `init` has none; leave "
            "it out, or make the adapter with PEFT and give its folder"
        )


def _move(trained: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=NOISE)


def _copied_bytes(base: Base) -> float:
    """Return the size in bytes of the weights that merging the adapter would copy."""
    if is_quantized(base):  # bitsandbytes keeps more of a weight than its tensor
        return math.inf
    layers = [m for m in base.peft.modules() if isinstance(m, BaseTunerLayer)]
    return sum(p.nbytes for layer in layers for p in layer.get_base_layer().parameters())


def _sample(weight: Tensor) -> Tensor:
    """Return about a thousand values, evenly spaced over the tensor."""
    return weight.detach().flatten()[:: max(1, weight.numel() // 1000)].clone()


def _dtype(base: Base) -> torch.dtype:
    network: Any = base.peft.get_base_model()
    return network.dtype
