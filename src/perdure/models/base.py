"""Loading a base by name or folder: a causal LM, an encoder-decoder, or an encoder with a head."""

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

from perdure.config import DEFAULT_ADAPTER, check_finite, unknown_key
from perdure.errors import PerdureError, nearest, one_line
from perdure.models.base_files import check_json, unreadable
from perdure.models.classifier import Classifier, without_head
from perdure.models.kinds import AUTO, Kind, kind_of
from perdure.models.limits import Limits, limits
from perdure.models.padding import Padding, tried_padding
from perdure.models.pins import check_weights, locate, meant
from perdure.models.token_cache import TokenCache
from perdure.models.whole_weights import check_whole, warning_of_unused
from perdure.places import where_it_goes
from perdure.say import Say, silent
from perdure.seeds import derive, forked


# Adapters that add tokens before the text, so that it is longer than the labels.
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
TASK_TYPE = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


@dataclass(frozen=True, eq=False)
class BaseInfo:
    """What is known about a base without loading its weights.

    `cache` has the tokens of rows under its tokenizer.
    """

    name: str
    revision: str | None
    config: Any
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    limits: Limits
    cache: TokenCache = field(default_factory=TokenCache)


def read_base(name: str, revision: str | None = None) -> BaseInfo:
    """Read a base's config and tokenizer, and find its limits.

    Raises:
        PerdureError: there is no such base, or it is not of one of the three kinds.
    """
    config, tokenizer = load_config_and_tokenizer(name, revision)
    kind = kind_of(config, name)
    return BaseInfo(
        name=name,
        revision=revision,
        config=config,
        tokenizer=tokenizer,
        kind=kind,
        limits=limits(config, kind),
    )


@dataclass
class Base:
    """A model that is ready to learn, with its tokenizer.

    Args:
        name: the base's name or folder.
        kind: the kind of model.
        model: the model, with the adapter and for encoders the head.
        tokenizer: the base's tokenizer.
        limits: how many positions and token ids the base has.
    """

    name: str
    kind: Kind
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    limits: Limits = field(default_factory=Limits)
    cache: TokenCache | None = None

    @functools.cached_property
    def padding(self) -> Padding:
        """Which batches do not change the model's output for a row; tested at first use."""
        return tried_padding(self.network, self.kind, self.tokenizer, self.limits)

    @property
    def network(self) -> Any:
        """The model without an encoder's head: a `PeftModel`, or a `PreTrainedModel`."""
        return without_head(self.model)

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, so that there is no adapter."""
        return not isinstance(self.network, PeftModel)

    @property
    def peft(self) -> PeftModel:
        """The part of the model that has the adapter."""
        assert isinstance(self.network, PeftModel)
        return self.network

    @property
    def labels(self) -> list[str] | None:
        """The labels of an encoder's head, in order; None for other kinds."""
        return self.model.labels if isinstance(self.model, Classifier) else None

    def to_accelerator(self) -> None:
        """Move the model to the accelerator, if there is one."""
        if torch.accelerator.is_available():
            self.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]

    def to(self, device: torch.device) -> None:
        """Move the model to a device. A quantised model stays where it was loaded."""
        if not is_quantized(self):
            self.model.to(device)


def is_quantized(base: Base) -> bool:
    """Return whether the weights below the adapter are quantised."""
    return bool(getattr(base.network, "is_quantized", False))


def load_base(
    name: str,
    adapter: dict[str, Any] | None,
    seed: int,
    quantization: dict[str, Any] | None = None,
    revision: str | None = None,
    weights: Path | None = None,
    see: Callable[[PreTrainedModel, PreTrainedTokenizerBase], None] | None = None,
    info: BaseInfo | None = None,
    say: Say = silent,
    dtype: torch.dtype | None = None,
) -> Base:
    """Load a base and put a fresh adapter on it; an encoder also gets an empty head.

    Args:
        name: the base's name or folder.
        adapter: PEFT's settings. None trains all weights, which are then loaded in fp32, because
            small updates of a bf16 weight would be rounded away.
        seed: the seed of new weights.
        quantization: the arguments of `BitsAndBytesConfig`, if the base is quantised.
        revision: the commit of a base on the hub.
        weights: a folder whose weights replace the base's.
        see: called with the model and the tokenizer before the adapter is put on.
        info: the result of `read_base` for this base, if there is one already.
        say: called with a warning if the files have tensors that the model does not use.
        dtype: the data type of the weights; None is fp32 without an adapter, and also with one that
            trains weights of the base (`modules_to_save`, `bias`, LN_TUNING), and otherwise that of
            the files.

    Raises:
        PerdureError: the base does not exist, does not load or lacks weights, or PEFT or
            bitsandbytes refuses the settings.
    """
    info = info or read_base(name, revision)
    kind, tokenizer = info.kind, info.tokenizer
    check_quantization(quantization, adapter, kind)
    where = {"quantization_config": BitsAndBytesConfig(**quantization)} if quantization else {}
    with forked(derive(seed, "base")):  # seeds the weights that the files lack, as of a pooler
        model = load_pretrained(
            name,
            kind,
            revision=revision,
            weights=weights,
            dtype=dtype or (torch.float32 if adapter is None else "auto"),
            say=say,
            **where,
        )
    if quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On some CPUs, bitsandbytes 0.50 repacks 4-bit weights at the first forward pass that
            # does not train, for a kernel without a gradient: nothing would be learned afterwards.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if see is not None and adapter is not None:
        see(model, tokenizer)
    network: Any = model if adapter is None else with_adapter(model, kind, adapter, seed)
    trained = [parameter.dtype for parameter in network.parameters() if parameter.requires_grad]
    if not quantization and dtype is None and {torch.bfloat16, torch.float16} & set(trained):
        # `say` has been called already, and `see` has to see these weights.
        del model, network
        return load_base(
            name,
            adapter,
            seed,
            revision=revision,
            weights=weights,
            see=see,
            info=info,
            dtype=torch.float32,
        )
    if kind == "encoder":
        network = Classifier(network, info.config.hidden_size)
    return Base(name, kind, network, tokenizer, limits=info.limits, cache=info.cache)


def load_pretrained(
    name: str,
    kind: Kind,
    revision: str | None = None,
    weights: Path | None = None,
    dtype: Any = "auto",
    say: Say = silent,
    **settings: Any,
) -> PreTrainedModel:
    """Load the model of a base without an adapter.

    Args:
        name: the base's name or folder.
        kind: the kind of model.
        revision: the commit of a base on the hub.
        weights: a folder whose weights replace the base's.
        dtype: the data type of the weights; `auto` is that of the files.
        say: called with a warning if the files have tensors that the model does not use.
        settings: further arguments of `from_pretrained`.

    Raises:
        PerdureError: the weights do not load, are not safetensors, or are not all of the model's.
    """
    check_weights(weights or Path(locate(name)), name)
    try:
        model, loading = AUTO[kind].from_pretrained(
            pretrained_model_name_or_path=str(weights or locate(name)),
            use_safetensors=True,  # a pickle could run code
            trust_remote_code=False,  # None would ask the user
            dtype=dtype,
            revision=None if weights else revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_whole` says which, in its own words
            **settings,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise PerdureError(
            f"base {name!r}: its weights do not load ({one_line(error)}); give a whole base"
        ) from error
    check_whole(name, model, loading, kind)
    if warning := warning_of_unused(name, model, loading, kind):
        say(warning)
    return model


def with_adapter(model: PreTrainedModel, kind: Kind, adapter: dict[str, Any], seed: int) -> Any:
    """Put a fresh adapter with these settings on the model.

    Raises:
        PerdureError: PEFT refuses the settings, they train nothing, or the labels would not fit.
    """
    settings = {"task_type": TASK_TYPE[kind], **adapter}
    settings["peft_type"] = str(settings.get("peft_type", "LORA")).upper()
    if settings["peft_type"] in PROMPTS and kind != "seq2seq":
        raise PerdureError(
            f"adapter: {settings['peft_type']} adds tokens to the text, so the labels would not "
            "fit it; use LORA"
        )
    if settings["peft_type"] == "LORA":  # GPT-2's Conv1D stores its weights transposed
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        settings = {**DEFAULT_ADAPTER, "fan_in_fan_out": transposed, **settings}
    with forked(derive(seed, "adapter")), warnings.catch_warnings():
        # `export` separates tied weights before it merges, and `init` tests that it can merge.
        for message in (".*tie_word_embeddings", ".*lora_bias=True"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        try:
            if tokenizer := settings.get("tokenizer_name_or_path"):
                load_tokenizer(tokenizer)  # PEFT would ask whether to run code that it brings
            peft_model = get_peft_model(model, get_peft_config(check_adapter(settings)))
        except PerdureError:
            raise
        except Exception as error:  # PEFT's checks raise errors of many types
            reason = one_line(error) or type(error).__name__
            raise PerdureError(f"adapter: PEFT refuses these settings: {reason}") from error
    if not any(parameter.requires_grad for parameter in peft_model.parameters()):
        raise PerdureError("adapter: nothing is trained under these settings; adapter={} is LoRA")
    return peft_model


def load_config_and_tokenizer(
    name: str, revision: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the config and the tokenizer of a base, without its weights.

    Raises:
        PerdureError: there is no such base, or it needs code of its own.
    """
    try:
        config = AutoConfig.from_pretrained(
            locate(name), revision=revision, trust_remote_code=False
        )
        _check_kernels(name, config)
        check_json(name, revision, "generation_config.json")
        return config, load_tokenizer(locate(name), revision)
    except PerdureError:
        raise
    except Exception as error:  # transformers' checks of a config raise errors of many types
        if (line := unreadable(name, revision)) is not None:
            raise PerdureError(line) from error
        raise PerdureError(
            f"base {name!r}: no model could be loaded ({one_line(error)}); give a folder with "
            "config.json, weights and tokenizer, a model name on the hub, default or smollm2"
            + meant(name)
        ) from error


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer, without running code that comes with it.

    Raises:
        OSError, ValueError: there is none, or it needs such code.
    """
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def _check_kernels(name: str, config: Any) -> None:
    """Check that a config names no attention or experts of the hub, which are code.

    Raises:
        PerdureError: it does.
    """
    for part in [config, *vars(config).values()]:
        for key in ("_attn_implementation", "_experts_implementation"):
            implementation = getattr(part, key, None)
            if isinstance(implementation, str) and "/" in implementation:
                raise PerdureError(
                    f"base {name!r}: its config.json takes {key[1:]} {implementation!r}, which is "
                    "code on the hub, and is not run; remove the key from config.json"
                )


# Numbers of an adapter that PEFT does not check: outside these ranges it would not learn.
ADAPTER_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number from 1 to 65536", lambda x: isinstance(x, int) and 1 <= x <= 65536),
    "lora_alpha": ("a number above 0", lambda x: x > 0),
    "lora_dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
}
# Keys of PEFT's settings that the engine sets itself.
ADAPTER_OWNED = {
    "inference_mode": "a stage is trained",
    "task_type": "it follows from the base",
    "base_model_name_or_path": "set `base:` next to `adapter:`",
    "revision": "set `revision:` next to `adapter:`",
}


def check_adapter(settings: dict[str, Any]) -> dict[str, Any]:
    """Check the settings of an adapter, and return them with `peft_type` in upper case.

    Raises:
        PerdureError: PEFT has no such adapter type, the type has no such key, or a number is
            outside of its range.
    """
    configs = {str(k.value): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    peft_type = str(settings["peft_type"]).upper()
    if peft_type not in configs:
        raise PerdureError(
            f"adapter: unknown peft_type {peft_type!r}; {nearest(peft_type, configs)}"
        )
    valid = [field.name for field in dataclasses.fields(configs[peft_type])]
    for key, value in settings.items():
        if key not in valid:
            hint = where_it_goes(str(key), "adapter", valid)
            raise PerdureError(f"adapter: {peft_type} has no setting {key!r}; {hint}")
        check_finite(key, value, "adapter")
        expected, is_valid = ADAPTER_NUMBERS.get(key, ("", lambda _: True))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if expected and not (is_number and is_valid(value)):
            raise PerdureError(f"adapter: {key} must be {expected}, got {value!r}")
    return {**settings, "peft_type": peft_type}


def check_owned(adapter: dict[str, Any] | None) -> None:
    """Check that `adapter:` has no keys that the engine sets itself.

    Raises:
        PerdureError: it has one; the line says why it is the engine's.
    """
    for key in adapter or {}:
        if key in ADAPTER_OWNED:
            raise PerdureError(f"adapter: {key!r} is set by Perdure: {ADAPTER_OWNED[key]}")


def quantization_keys() -> list[str]:
    """Return the keys that `quantization:` can have."""
    valid = [key for key in vars(BitsAndBytesConfig()) if not key.startswith("_")]
    return [*valid, "load_in_4bit", "load_in_8bit"]


def check_quantization(
    quantization: dict[str, Any] | None, adapter: dict[str, Any] | None, kind: Kind | None = None
) -> None:
    """Check that a base with these settings of `quantization:` can be trained.

    Raises:
        PerdureError: there is no adapter, the base is an encoder, bitsandbytes has no such key or
            refuses the settings, or they do not quantise.
    """
    if not quantization:
        return
    if adapter is None:
        raise PerdureError("quantization: a quantised base needs an adapter; set adapter={}")
    if kind == "encoder":
        raise PerdureError("quantization: an encoder is small enough without it; leave it out")
    valid = quantization_keys()
    for key, value in quantization.items():
        if key not in valid:
            raise PerdureError(f"quantization: {unknown_key(key, value, 'quantization', valid)}")
        check_finite(key, value, "quantization")
    try:
        config = BitsAndBytesConfig(**quantization)
    except (TypeError, ValueError, AttributeError) as error:
        raise PerdureError(f"quantization: {one_line(error)}") from error
    if not config.load_in_4bit and not config.load_in_8bit:
        raise PerdureError("quantization: neither load_in_4bit nor load_in_8bit is set; set one")
