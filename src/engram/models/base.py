"""A base by name or folder: causal LM, encoder-decoder, or encoder with a growing head."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_config, get_peft_model, prepare_model_for_kbit_training
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from engram.config import ADAPTER, check_finite, unknown_key
from engram.errors import EngramError, nearest
from engram.models.classifier import Classifier
from engram.models.kinds import AUTO, Kind, kind_of
from engram.models.limits import Limits, limits
from engram.models.padding import Padding, tried_padding
from engram.models.pins import locate, meant
from engram.places import where_it_goes
from engram.seeds import derive, forked


# Adapters that put tokens of their own before the text, which then has more than the labels know.
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
TASK_TYPE = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


@dataclass(frozen=True, eq=False)
class BaseInfo:
    """What is known of a base without its weights."""

    name: str
    revision: str | None
    config: Any
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    limits: Limits


def read_base(name: str, revision: str | None = None) -> BaseInfo:
    """Read a base's config and tokenizer, and find out how long a text and which tokens it takes.

    Raises:
        EngramError: there is no such base, or it is none of the three kinds.
    """
    config, tokenizer = load_config_and_tokenizer(name, revision)
    kind = kind_of(config, name)
    return BaseInfo(name, revision, config, tokenizer, kind, limits(config, kind))


@dataclass
class Base:
    """A model ready to learn, and what is needed to feed it."""

    name: str
    kind: Kind
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    limits: Limits = field(default_factory=Limits)

    @functools.cached_property
    def padding(self) -> Padding:
        """Which batches leave what the model makes of a row as it is; tried when first asked."""
        return tried_padding(self.network, self.kind, self.tokenizer, self.limits)

    @property
    def network(self) -> Any:
        """The model without an encoder's head: a `PeftModel`, or the whole `PreTrainedModel`."""
        return self.model.backbone if isinstance(self.model, Classifier) else self.model

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, without an adapter."""
        return not isinstance(self.network, PeftModel)

    @property
    def peft(self) -> PeftModel:
        """The part of the model that carries the adapter."""
        assert isinstance(self.network, PeftModel)
        return self.network

    @property
    def labels(self) -> list[str] | None:
        return self.model.labels if isinstance(self.model, Classifier) else None

    def to(self, device: torch.device) -> None:
        """Move the model; a quantised one lies where it was loaded."""
        if not getattr(self.network, "is_quantized", False):
            self.model.to(device)


def load_base(
    name: str,
    adapter: dict[str, Any] | None,
    seed: int,
    quantization: dict[str, Any] | None = None,
    revision: str | None = None,
    weights: Path | None = None,
    see: Callable[[PreTrainedModel, PreTrainedTokenizerBase], None] | None = None,
    info: BaseInfo | None = None,
) -> Base:
    """The base with a fresh adapter on it (an encoder also gets an empty head).

    Without an adapter all weights are trained, and are loaded in fp32: small updates of a bf16
    weight round to nothing. `quantization` goes to `BitsAndBytesConfig`; `revision` is a commit of
    the hub; `weights` is a folder to take a whole model's weights from in place of the base's;
    `see` is called with the model before the adapter is put on; `info` is what was read of this
    base before, if it was.

    Raises:
        EngramError: no such base, or settings that PEFT or bitsandbytes do not take.
    """
    info = info or read_base(name, revision)
    kind, tokenizer = info.kind, info.tokenizer
    check_quantization(quantization, adapter, kind)
    where = {"pretrained_model_name_or_path": str(weights or locate(name))}
    if quantization:
        where["quantization_config"] = BitsAndBytesConfig(**quantization)  # type: ignore
    try:
        with forked(derive(seed, "base")):  # weights that the base lacks, such as a pooler's
            model: PreTrainedModel = AUTO[kind].from_pretrained(
                **where,
                dtype=torch.float32 if adapter is None else "auto",
                revision=None if weights else revision,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise EngramError(
            f"base {name!r}: its weights do not load ({one_line(error)}); give a whole base"
        ) from error
    if quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On some CPUs bitsandbytes 0.50 repacks 4-bit weights at the first forward pass that is
            # not training, for a kernel without a gradient: learning after scoring would be none.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if see is not None and adapter is not None:
        see(model, tokenizer)
    network: Any = model if adapter is None else with_adapter(model, kind, adapter, seed)
    if kind == "encoder":
        network = Classifier(network, info.config.hidden_size)
    return Base(name, kind, network, tokenizer, info.limits)


def with_adapter(model: PreTrainedModel, kind: Kind, adapter: dict[str, Any], seed: int) -> Any:
    """The model with a fresh adapter of these settings on it.

    Raises:
        EngramError: PEFT refuses them, or the labels would not fit.
    """
    settings = {"task_type": TASK_TYPE[kind], **adapter}
    settings["peft_type"] = str(settings.get("peft_type", "LORA")).upper()
    if settings["peft_type"] in PROMPTS and kind != "seq2seq":
        raise EngramError(
            f"adapter: {settings['peft_type']} lengthens the text by tokens of its own, and the "
            "labels would not fit it; take LORA"
        )
    if settings["peft_type"] == "LORA":  # GPT-2's Conv1D holds its weights transposed
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        settings = {**ADAPTER, "fan_in_fan_out": transposed, **settings}
    with forked(derive(seed, "adapter")), warnings.catch_warnings():
        # `export` separates tied weights before it merges, and `init` tries whether it can merge.
        for told in (".*tie_word_embeddings", ".*lora_bias=True"):
            warnings.filterwarnings("ignore", message=told, category=UserWarning)
        try:
            carried = get_peft_model(model, get_peft_config(check_adapter(settings)))
        except EngramError:
            raise
        except Exception as error:  # PEFT's checks have their own kinds
            said = one_line(error) or type(error).__name__
            raise EngramError(f"adapter: PEFT refuses these settings: {said}") from error
    if not any(parameter.requires_grad for parameter in carried.parameters()):
        raise EngramError("adapter: nothing is trained under these settings; adapter={} is LoRA")
    return carried


def load_config_and_tokenizer(
    name: str, revision: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """What can be read of a base without its weights.

    Raises:
        EngramError: there is no such base.
    """
    try:
        config = AutoConfig.from_pretrained(locate(name), revision=revision)
        return config, AutoTokenizer.from_pretrained(locate(name), revision=revision)
    except (OSError, ValueError) as error:
        raise EngramError(
            f"base {name!r}: no model could be loaded ({one_line(error)}); give a folder with "
            "config.json, weights and tokenizer, a model name of the hub, default or smollm2"
            + meant(name)
        ) from error


# The numbers of an adapter that PEFT takes and that would learn nothing, or break while learning.
ADAPTER_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number from 1 to 65536", lambda x: isinstance(x, int) and 1 <= x <= 65536),
    "lora_alpha": ("a number above 0", lambda x: x > 0),
    "lora_dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
}
# What PEFT writes of an adapter's life, and the engine sets itself.
ADAPTER_OWNED = {
    "inference_mode": "a stage is trained",
    "task_type": "it follows from the base",
    "base_model_name_or_path": "set `base:` beside `adapter:`",
    "revision": "set `revision:` beside `adapter:`",
}


def check_adapter(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` if every key is one of PEFT's for that adapter type, and its numbers can learn.

    Raises:
        EngramError: with the nearest valid key, the place where it belongs, or the reason.
    """
    kinds = {str(k.value): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(settings["peft_type"]).upper()
    if kind not in kinds:
        raise EngramError(f"adapter: unknown peft_type {kind!r}; {nearest(kind, kinds)}")
    valid = [f.name for f in dataclasses.fields(kinds[kind])]
    for key, value in settings.items():
        if key not in valid:
            hint = where_it_goes(str(key), "adapter", valid)
            raise EngramError(f"adapter: {kind} has no setting {key!r}; {hint}")
        check_finite(key, value, "adapter")
        said, fits = ADAPTER_NUMBERS.get(key, ("", lambda _: True))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if said and not (number and fits(value)):
            raise EngramError(f"adapter: {key} must be {said}, got {value!r}")
    return {**settings, "peft_type": kind}


def check_owned(adapter: dict[str, Any] | None) -> None:
    """Refuse keys of `adapter:` that say what the engine decides.

    Raises:
        EngramError: with the reason.
    """
    for key in adapter or {}:
        if key in ADAPTER_OWNED:
            raise EngramError(f"adapter: {key!r} is the engine's own: {ADAPTER_OWNED[key]}")


def quantization_keys() -> list[str]:
    """The keys that `quantization:` can have."""
    valid = [key for key in vars(BitsAndBytesConfig()) if not key.startswith("_")]
    return [*valid, "load_in_4bit", "load_in_8bit"]


def check_quantization(
    quantization: dict[str, Any] | None, adapter: dict[str, Any] | None, kind: Kind | None = None
) -> None:
    """Refuse a quantised base that could not be learned on, and keys bitsandbytes does not have.

    Raises:
        EngramError: with the nearest valid key, or the reason.
    """
    if not quantization:
        return
    if adapter is None:
        raise EngramError("quantization: a quantised base takes an adapter; set adapter={}")
    if kind == "encoder":
        raise EngramError("quantization: an encoder is small enough without; leave it out")
    valid = quantization_keys()
    for key, value in quantization.items():
        if key not in valid:
            raise EngramError(f"quantization: {unknown_key(key, value, 'quantization', valid)}")
        check_finite(key, value, "quantization")
    try:
        chosen = BitsAndBytesConfig(**quantization)
    except (TypeError, ValueError, AttributeError) as error:
        raise EngramError(f"quantization: {one_line(error)}") from error
    if not chosen.load_in_4bit and not chosen.load_in_8bit:
        raise EngramError("quantization: says neither load_in_4bit nor load_in_8bit; set one")


def one_line(error: Exception) -> str:
    """The first sentence of a library's message."""
    return " ".join(str(error).split()).split(". ")[0][:200]
