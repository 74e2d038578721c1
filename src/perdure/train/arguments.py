"""Checks `training:` of the settings, and makes `TrainingArguments` of it."""

import dataclasses
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DynamoBackend
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames
from transformers.utils.import_utils import is_liger_kernel_available

from perdure.config import DEFAULT_TRAINING, GROUPED, PADDING_FREE, check_finite, unknown_key
from perdure.errors import PerdureError, nearest, one_line
from perdure.train.dev_settings import (
    EARLY_STOPPING,
    FOLLOWING_SCHEDULES,
    KEYS,
    OWN_KEYS,
    dev_settings,
    strategy,
)


SCHEDULE_STEPS = 8  # the length of the schedule with which arguments are tried

# Keys that TrainingArguments does not have, with their types.
ADDED = {**EARLY_STOPPING, PADDING_FREE: bool}
# Prefixes of the keys that the engine sets itself, with the reason that the error gives.
OWNED = {
    "output_dir": "the lineage decides where files are stored",
    "seed": "set `seed:` next to `training:`",
    "data_seed": "set `seed:` next to `training:`",
    "resume": "the same command resumes by itself",
    "save_": "set `checkpoint_every:` next to `training:`",
    "eval_": "dev rows are measured by `eval_strategy`, tasks are scored after each stage",
    "do_": "`perdure learn` trains, `perdure evaluate` scores",
    "greater_is_better": "a loss is better if it is lower, and a score if it is higher",
    "push_to_hub": "a lineage is not pushed while it is trained",
    "hub_": "a lineage is not pushed while it is trained",
    "remove_unused": "Perdure makes its own features",
    "label_": "Perdure computes the task loss itself",
    "auto_find_batch": "the batch size changes the weights of a stage; choose it yourself",
}
# Keys with which methods cannot work, with the reason and what to use instead.
REFUSED = {
    "fp16": "gradients are still scaled when methods read them; use bf16",
    "deepspeed": "it steps inside backward, where no method can act; use FSDP2",
    "fsdp": "the launcher decides it; accelerate launch --use_fsdp --fsdp_version 2",
    "fsdp_config": "the launcher decides it; accelerate launch --use_fsdp --fsdp_version 2",
    "parallelism_config": "no process has whole weights and rows; use DDP or FSDP2",
    "dataloader_num_workers": "remembered rows are drawn in the main process; leave this key out",
    "dataloader_persistent_workers": "there are no workers; leave this key out",
    "ignore_data_skip": "a resumed run would learn other rows than one that was not stopped",
    "bf16_full_eval": "dev rows are measured as they are learned; set bf16",
    "fp16_full_eval": "dev rows are measured as they are learned; set bf16",
    "batch_eval_metrics": "Perdure measures dev rows itself",
    "optim_target_modules": "its optimizers step inside backward, where no method can act",
    "group_by_length": f"transformers 5 calls it train_sampling_strategy={GROUPED}",
    "packing": f"rows are not joined to longer ones; {PADDING_FREE}=true packs those of a batch",
}


# The values that a key accepts, of those keys whose type is text.
CHOICES: dict[str, list[str]] = {
    field.name: list(field.metadata["choices"])
    for field in dataclasses.fields(TrainingArguments)
    if field.metadata.get("choices")
}
# Prefixes of optimizers that step inside backward or need `optim_target_modules`.
REFUSED_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")
# The numbers that a key accepts, if not all numbers of its type: in words, and as a test.
NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "learning_rate": ("a number above 0", lambda x: x > 0),
    "per_device_train_batch_size": ("at least 1", lambda x: x >= 1),
    "gradient_accumulation_steps": ("at least 1", lambda x: x >= 1),
    "num_train_epochs": ("above 0", lambda x: x > 0),
    "max_steps": ("at least 1, or -1 for whole epochs", lambda x: x >= 1 or x == -1),
    "warmup_steps": ("at least 0; below 1 it is a share of all steps", lambda x: x >= 0),
    "warmup_ratio": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "weight_decay": ("at least 0", lambda x: x >= 0),
    "adam_beta1": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "adam_beta2": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "adam_epsilon": ("at least 0", lambda x: x >= 0),
    "max_grad_norm": ("at least 0; 0 does not clip", lambda x: x >= 0),
    "neftune_noise_alpha": ("at least 0", lambda x: x >= 0),
    "logging_steps": ("above 0", lambda x: x > 0),
    "torch_empty_cache_steps": ("at least 1", lambda x: x >= 1),
    "per_device_eval_batch_size": ("at least 1", lambda x: x >= 1),
    "eval_steps": (
        "a whole number of at least 1, or below 1 a share of all steps",
        lambda x: 0 < x < 1 or (x >= 1 and x == int(x)),
    ),
    "eval_delay": ("at least 0", lambda x: x >= 0),
    "early_stopping_patience": ("a whole number of at least 1", lambda x: x >= 1 and x == int(x)),
    "early_stopping_threshold": ("at least 0", lambda x: x >= 0),
}


def settable() -> list[str]:
    """The keys that `training:` accepts: TrainingArguments' without those that the engine sets.

    Those of early stopping and `padding_free` are added.
    """
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    usable = [name for name in names if owned(name) is None and name not in REFUSED]
    return [*usable, *ADDED]


def owned(key: str) -> str | None:
    """Why a key of `training:` is set by the engine itself, None if it is not."""
    if key in KEYS:
        return None
    return next((reason for prefix, reason in OWNED.items() if key.startswith(prefix)), None)


def check_training(training: dict[str, Any]) -> None:
    """Check the keys and values of `training:`.

    Raises:
        PerdureError: a key that is unknown, set by the engine or not supported, or a value that the
            key does not accept; with the nearest valid key, its place, or the reason.
    """
    valid, types = settable(), get_type_hints(TrainingArguments) | ADDED
    for key, value in training.items():
        if reason := owned(str(key)):
            raise PerdureError(f"training: {key!r} is set by Perdure: {reason}")
        if key in REFUSED:
            if value:
                raise PerdureError(f"training: {key!r} is not supported: {REFUSED[key]}")
        elif key not in valid:
            raise PerdureError(f"training: {unknown_key(key, value, 'training', valid)}")
        elif (key, value) != ("eval_strategy", False):  # YAML reads `no` as false
            _check_value(key, value, types[key])
    dev_settings(training)
    tracker_names(training.get("report_to"))


def _check_value(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value that is not of the key's type, not finite, or outside of the key's range."""
    check_finite(key, value, "training")
    if key in NUMBERS and not (value is None and type(None) in get_args(annotation)):
        expected, is_valid = NUMBERS[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not is_valid(value):
            raise PerdureError(f"training: {key} must be {expected}, got {value!r}")
    choices = CHOICES.get(key)
    if choices and isinstance(value, str) and value not in choices:
        raise PerdureError(f"training: {key}: no {value!r}; {nearest(value, choices)}")
    options = get_args(annotation) or (annotation,)
    types = [get_origin(option) or option for option in options]  # `list[str]` is `list` here
    for enum in (kind for kind in types if isinstance(kind, type) and issubclass(kind, Enum)):
        names = [str(choice.value) for choice in enum]
        if isinstance(value, str) and value not in names:
            usable = [name for name in names if not name.startswith(REFUSED_OPTIMIZERS)]
            raise PerdureError(f"training: {key}: no {value!r}; {nearest(value, usable)}")
    if float in types and int not in types:
        types.append(int)
    has_type = any(isinstance(value, kind) for kind in types if isinstance(kind, type))
    if Any in options or (has_type and (bool in types or not isinstance(value, bool))):
        return  # a bool is an int in Python, but not here
    expected = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    expected = expected.replace("NoneType", "null")
    raise PerdureError(f"training: {key} takes {expected}, got {value!r}")


def training_arguments(
    training: dict[str, Any], work: Path, seed: int, checkpoint_every: int
) -> TrainingArguments:
    """The arguments of one task's Trainer.

    Raises:
        PerdureError: a key or a value that TrainingArguments refuses.
    """
    check_training(training)
    own = (*OWN_KEYS, PADDING_FREE)
    passed_on = {key: value for key, value in training.items() if key not in own}
    settings = {
        "logging_strategy": "steps" if tracker_names(training.get("report_to")) else "no",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # a loss that is not finite stops the task
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # otherwise bf16 is refused on a CPU
        **DEFAULT_TRAINING,
        **passed_on,
        "eval_strategy": strategy(training) or "no",
        "metric_for_best_model": dev_settings(training).metric,  # the Trainer's schedules use it
        "report_to": "none",  # `tracking.Tracked` opens the trackers
    }
    try:
        args = TrainingArguments(
            output_dir=str(work),
            seed=seed % 2**32,
            save_strategy="steps" if checkpoint_every else "no",
            save_steps=checkpoint_every or 500,
            save_total_limit=2,
            remove_unused_columns=False,
            **settings,
        )
        use_one_gpu(args)
        _try_optimizer(args)
    except Exception as error:  # the libraries raise errors of many types
        message = one_line(error) or type(error).__name__
        raise PerdureError(f"training: {message}") from error
    return args


def arguments_for_stage(args: TrainingArguments, work: Path, seed: int) -> TrainingArguments:
    """A copy of checked arguments, for one stage's Trainer.

    Creating the copy also resets the state that accelerate shares in the process, so that the
    stage's Trainer does not use the state of the previous Trainer.
    """
    copied = dataclasses.replace(args, output_dir=str(work), seed=seed % 2**32)
    use_one_gpu(copied)
    return copied


def use_one_gpu(args: TrainingArguments) -> None:
    """Use the first GPU only, however many the process sees; a launcher's process has one as well.

    Otherwise the Trainer wraps the model in `nn.DataParallel`, and its batches are larger.
    """
    args._n_gpu = min(args.n_gpu, 1)


def _try_optimizer(args: TrainingArguments) -> None:
    """Create the Trainer's optimizer and schedule for two weights, and take a step.

    Raises:
        Exception: any error that the Trainer would raise before training.
    """
    name = OptimizerNames(args.optim).value
    if name.startswith(REFUSED_OPTIMIZERS):
        raise PerdureError(f"optim: {name}: {REFUSED['optim_target_modules']}; take another")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise PerdureError("use_liger_kernel: liger-kernel is not installed; leave it out")
    args.get_process_log_level()
    if args.torch_compile:
        DynamoBackend((args.torch_compile_backend or "inductor").upper())
        modes = torch._inductor.list_mode_options() if args.torch_compile_mode else ()
        if args.torch_compile_mode and args.torch_compile_mode not in (*modes, "default"):
            raise PerdureError(f"torch_compile_mode: {nearest(args.torch_compile_mode, modes)}")
    weights = [nn.Parameter(torch.zeros(2, 2, device=args.device)) for _ in range(2)]
    optimizer_class, keywords = Trainer.get_optimizer_cls_and_kwargs(args)
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        return  # a factory that needs the whole model
    optimizer = optimizer_class(weights, **keywords)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(SCHEDULE_STEPS),
        num_training_steps=SCHEDULE_STEPS,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    measured: list[Any] = [0.0] if args.lr_scheduler_type in FOLLOWING_SCHEDULES else []
    schedule.step(*measured)


def tracker_names(report_to: Any) -> list[str]:
    """The trackers that `report_to` names, in the forms that `TrainingArguments` accepts.

    Raises:
        PerdureError: a tracker that accelerate does not know, or that is not installed.
    """
    requested = report_to if isinstance(report_to, list | tuple) else [report_to or "none"]
    installed = [str(tracker) for tracker in get_available_trackers()]
    names: list[str] = []
    for name in requested:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all", "none"):
            close = nearest(str(name), [*LOGGER_TYPE_TO_CLASS, "all", "none"])
            raise PerdureError(f"training: report_to: unknown tracker {name!r}; {close}")
        if name in LOGGER_TYPE_TO_CLASS and name not in installed:
            raise PerdureError(
                f"training: report_to: {name} is not installed; pip install {name}, or leave it out"
            )
        names += installed if name == "all" else [name] if name != "none" else []
    return list(dict.fromkeys(names))
