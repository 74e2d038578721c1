"""`training:` of the YAML to `TrainingArguments`, minus what belongs to the engine."""

import dataclasses
import math
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

from perdure.config import DEFAULT_TRAINING, check_finite, unknown_key
from perdure.errors import PerdureError, nearest


STEPS = 8  # of the schedule that is tried

# Prefixes of the keys that the engine sets itself, with the reason it gives.
OWNED = {
    "output_dir": "the lineage decides where things lie",
    "seed": "set `seed:` beside `training:`",
    "data_seed": "set `seed:` beside `training:`",
    "resume": "the same command resumes by itself",
    "save_": "set `checkpoint_every:` beside `training:`",
    "eval_": "tasks are scored after each stage, see `scoring:`",
    "do_": "`perdure learn` trains, `perdure evaluate` scores",
    "load_best": "a stage is the end of its training",
    "metric_for_best": "a stage is the end of its training",
    "greater_is_better": "a stage is the end of its training",
    "push_to_hub": "a lineage is not pushed while it is trained",
    "hub_": "a lineage is not pushed while it is trained",
    "remove_unused": "Perdure makes its own features",
    "label_": "Perdure computes the task loss itself",
    "auto_find_batch": "the batch decides the bytes of a stage; choose it",
}
# Keys under which a method could not do its work, with the way out.
REFUSED = {
    "fp16": "its gradients are scaled when methods read them; use bf16",
    "deepspeed": "it steps inside backward, where no method can act; use FSDP2",
    "dataloader_num_workers": "remembered rows are drawn in the main process; leave it out",
    "optim_target_modules": "its optimizers step inside backward, where no method can act",
}


# Optimizers that step inside backward or need `optim_target_modules`, by how their names begin.
REFUSED_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")
# The numbers that a key takes, where not every number of its type is one: as it is told, and tried.
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
}


def settable() -> list[str]:
    """The keys that `training:` can have: TrainingArguments', without the engine's own."""
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    return [name for name in names if not name.startswith(tuple(OWNED)) and name not in REFUSED]


def check_training(training: dict[str, Any]) -> None:
    """Refuse keys that are not TrainingArguments' or the engine's own, and values of no use.

    Raises:
        PerdureError: with the nearest valid key, the place where it belongs, or the reason.
    """
    valid, kinds = settable(), get_type_hints(TrainingArguments)
    for key, value in training.items():
        for owned, reason in OWNED.items():
            if str(key).startswith(owned):
                raise PerdureError(f"training: {key!r} is the engine's own: {reason}")
        if key in REFUSED:
            if value:
                raise PerdureError(f"training: {key!r} is not supported: {REFUSED[key]}")
        elif key not in valid:
            raise PerdureError(f"training: {unknown_key(key, value, 'training', valid)}")
        else:
            _check_value(key, value, kinds[key])
    tracker_names(training.get("report_to"))


def _check_value(key: str, value: Any, kind: Any) -> None:
    """Refuse what is not of the key's type, not finite, or out of the key's range."""
    if key in NUMBERS and not (value is None and type(None) in get_args(kind)):
        said, fits = NUMBERS[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not fits(value):  # type: ignore[arg-type]
            raise PerdureError(f"training: {key} must be {said}, got {value!r}")
    check_finite(key, value, "training")
    options = get_args(kind) or (kind,)
    plain = [get_origin(option) or option for option in options]
    for choices in (kind for kind in plain if isinstance(kind, type) and issubclass(kind, Enum)):
        names = [str(choice.value) for choice in choices]
        if isinstance(value, str) and value not in names:
            usable = [name for name in names if not name.startswith(REFUSED_OPTIMIZERS)]
            raise PerdureError(f"training: {key}: no {value!r}; {nearest(value, usable)}")
    if float in plain and int not in plain:
        plain.append(int)
    fits = any(isinstance(value, option) for option in plain if isinstance(option, type))
    if Any in options or (fits and (bool in plain or not isinstance(value, bool))):
        return
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise PerdureError(f"training: {key} takes {wanted.replace('NoneType', 'null')}, got {value!r}")


def training_arguments(
    training: dict[str, Any], work: Path, seed: int, checkpoint_every: int
) -> TrainingArguments:
    """The arguments of one task's Trainer.

    Raises:
        PerdureError: a key or a value that TrainingArguments refuse.
    """
    check_training(training)
    settings = {
        "logging_strategy": "steps" if tracker_names(training.get("report_to")) else "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
        **DEFAULT_TRAINING,
        **training,
        "report_to": "none",  # the trackers it names are opened by `tracking.Tracked`
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
        _try_optimizer(args)
    except Exception as error:  # each check of the libraries has its own kind
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise PerdureError(f"training: {told}") from error
    return args


def arguments_for_stage(args: TrainingArguments, work: Path, seed: int) -> TrainingArguments:
    """A copy of arguments that are checked already, for one stage's Trainer.

    Making the copy also resets what accelerate keeps for the whole process, so that the stage's
    Trainer does not find the state of the Trainer before it.
    """
    return dataclasses.replace(args, output_dir=str(work), seed=seed % 2**32)


def _try_optimizer(args: TrainingArguments) -> None:
    """Make the optimizer and the schedule of the Trainer for two weights, and take a step.

    Raises:
        Exception: whatever the Trainer would raise when it is about to train.
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
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(args)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        return  # made of a whole model
    optimizer = kind(weights, **keywords)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(STEPS),
        num_training_steps=STEPS,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    schedule.step()


def tracker_names(report_to: Any) -> list[str]:
    """The trackers that a `report_to` names, as `TrainingArguments` take it.

    Raises:
        PerdureError: a tracker that accelerate does not know, or that is not installed.
    """
    given = report_to if isinstance(report_to, list | tuple) else [report_to or "none"]
    installed = [str(tracker) for tracker in get_available_trackers()]
    names: list[str] = []
    for name in given:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all", "none"):
            close = nearest(str(name), [*LOGGER_TYPE_TO_CLASS, "all", "none"])
            raise PerdureError(f"training: report_to: unknown tracker {name!r}; {close}")
        if name in LOGGER_TYPE_TO_CLASS and name not in installed:
            raise PerdureError(
                f"training: report_to: {name} is not installed; pip install {name}, or leave it out"
            )
        names += installed if name == "all" else [name] if name != "none" else []
    return list(dict.fromkeys(names))
