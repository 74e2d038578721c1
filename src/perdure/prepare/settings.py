"""Checks of the settings that need neither a base nor rows."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from perdure import processes
from perdure.config import Config, General
from perdure.data.hub import SPLITS
from perdure.data.stream import check_stream
from perdure.errors import PerdureError, nearest
from perdure.measure.guard.rows import read_guard_rows
from perdure.methods import make
from perdure.models.base import check_adapter, check_owned, check_quantization
from perdure.models.kinds import Kind
from perdure.prepare.merged import read_merge
from perdure.train.arguments import training_arguments
from perdure.train.dev_settings import dev_settings
from perdure.train.method import Method


# The smallest and the largest value of a key, and a hint for the error.
LIMITS: dict[str, tuple[float, float, str]] = {
    "memory.ratio": (0, 1, "0.02 keeps two of a hundred rows, 1 keeps all"),
    "scoring.sample": (1, math.inf, "null asks all test rows of the old tasks"),
    "scoring.batch_size": (1, math.inf, "32 rows at once is the default"),
    "guard.share": (0, 1, "0.2 is a fifth of what learning takes, and null for guard means none"),
    "guard.limit": (1, math.inf, "null means what guard.share allows"),
    "guard.lm_eval.limit": (1, math.inf, "null means all documents"),
    "guard.lm_eval.num_fewshot": (0, math.inf, "null means the task's own number"),
    "guard.max_new_tokens": (1, math.inf, "48 is the default"),
    "gate.forgetting": (0, 1, "0.05 allows a fall of 5 of 100 rows"),
    "gate.general": (0, 1, "0.05 allows 5 of 100 checks to be lost"),
    "gate.kl": (0, math.inf, "it is in nats per token"),
    "max_length": (0, math.inf, "0 means 512, or the base's number of positions"),
    "max_completion_length": (1, math.inf, "128 is the default"),
    "checkpoint_every": (0, math.inf, "0 keeps none"),
    "seed": (0, 2**32 - 1, "0 is the default"),
    "threads": (1, math.inf, "null means PyTorch's own choice"),
}


def check_settings(config: Config) -> tuple[list[Method], TrainingArguments]:
    """Check everything that needs neither a base nor rows.

    Returns the methods, and the training arguments of a task without its own `training:`.

    Raises:
        PerdureError: a setting is wrong; the line names the key and says how to fix it.
    """
    check_processes()
    check_values(config)
    check_launch(config)
    methods = make(config.method)
    arguments = training_arguments(config.training, Path("unused"), 0, config.checkpoint_every)
    if config.adapter is not None:
        check_adapter({"peft_type": "LORA", **config.adapter})
        check_owned(config.adapter)
    check_quantization(config.quantization, config.adapter)
    if config.memory.per_answer < 0:
        raise PerdureError(
            f"memory: per_answer must be >= 0, got {config.memory.per_answer}; 1 keeps a row of "
            "each answer"
        )
    _check_gate(config)
    if config.merge is not None:
        read_merge(config.merge)
    if config.mode != "sequential" and config.method != "sequential":
        raise PerdureError(f"mode {config.mode} takes no method; set method=sequential")
    return methods, arguments


def _check_gate(config: Config) -> None:
    """Check that what the gate limits will be measured, and that the guard's rows can be read."""
    gate, guard = config.gate, config.guard
    if guard is None and (gate.general is not None or gate.kl is not None):
        key = "general" if gate.general is not None else "kl"
        raise PerdureError(f"gate: {key} needs the guard, which is switched off; leave out guard")
    if gate.forgetting is not None and config.scoring.old != "each":
        raise PerdureError(
            "gate: forgetting needs the old tasks' scores after each stage; set scoring.old=each"
        )
    if guard is not None and guard.rows is not None:
        read_guard_rows(guard.rows)


def check_values(config: Config) -> None:
    """Check numbers against their limits, and that no text is empty.

    Raises:
        PerdureError: a value is wrong; the line names the key.
    """
    for key, (low, high, hint) in LIMITS.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)  # a section may be switched off
        if value is not None and not low <= value <= high:
            limits = f"from {low} to {high}" if high < math.inf else f"at least {low}"
            raise PerdureError(f"{key}: must be {limits}, got {value}; {hint}")
    if config.general.file is None and config.general.ratio != General.ratio:
        raise PerdureError(
            f"general: ratio is {config.general.ratio}, but there is no general.file to draw from; "
            "set general.file"
        )
    if not config.general.ratio > 0:
        raise PerdureError(
            f"general: ratio must be above 0, got {config.general.ratio}; 0.1 means one general "
            "row for ten new ones"
        )
    for key in ("base", "revision", "tasks", "data", "lineage"):
        value = getattr(config, key)
        if isinstance(value, str) and not value.strip():
            raise PerdureError(f"{key}: the value is empty; leave it out or give a value")
    for split, limit in config.rows.items():
        if split not in SPLITS:
            raise PerdureError(f"rows: unknown key {split!r}; {nearest(str(split), SPLITS)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise PerdureError(
                f"rows: {split} must be a whole number of at least 1, got {limit!r}; leave it out "
                "for all rows"
            )
    if config.data and not Path(config.data).is_dir():
        raise PerdureError(
            f"data: {config.data}: no such folder; give the folder with the benchmarks' rows"
        )
    check_stream(config)


def check_processes() -> None:
    """Check that the processes that were launched together learn one lineage together.

    Raises:
        PerdureError: each of them would do the verb for itself.
    """
    if processes.are_apart():
        raise PerdureError(
            "several processes: a lineage has one writer; only `learn` and `run` take several, and "
            "the command line does every other verb in one of them"
        )


def check_launch(config: Config) -> None:
    """Check what `accelerate launch` has set in the environment.

    Raises:
        PerdureError: it is a kind of parallelism that methods cannot work with, or it would change
            the training without being in the lineage's settings.
    """
    if what := _parallelism():
        raise PerdureError(f"{what}; use DDP, or FSDP2 if the training does not fit on one device")
    if processes.is_on("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise PerdureError(
                "FSDP1: it joins the weights into flat ones, in which methods cannot find them; "
                "use FSDP2 (accelerate launch --use_fsdp --fsdp_version 2), or DDP"
            )
        if processes.count() == 1:
            raise PerdureError(
                "FSDP2: shards the weights over several processes, and this is one; leave out "
                "--use_fsdp, or raise --num_processes"
            )
        if not can_shard():
            raise PerdureError(
                "FSDP2: accelerate shards the weights only on an accelerator, and there is none; "
                "use DDP (leave out --use_fsdp)"
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no" and not (precision == "bf16" and config.training.get("bf16")):
        raise PerdureError(
            f"mixed precision {precision}: was chosen by `accelerate launch`, but it decides what "
            "is learned, so it must be in the settings; launch with --mixed_precision no, and set "
            "training.bf16=true if you want bf16"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        raise PerdureError(
            "dynamo: was chosen by `accelerate launch`, but it decides what is learned, so it must "
            "be in the settings; launch with --dynamo_backend no, and set "
            "training.torch_compile=true"
        )


def can_shard() -> bool:
    """Return whether accelerate can shard weights on this machine."""
    return torch.accelerator.is_available()


def check_sharded(config: Config, methods: Sequence[Method], kind: Kind) -> None:
    """Check that the settings can be used with weights that are sharded (FSDP2).

    Raises:
        PerdureError: they cannot; the line says what to use instead.
    """
    if kind != "causal":
        raise PerdureError(
            f"FSDP2: base {config.base!r} is of kind {kind}, and only decoders (kind causal) can "
            "be sharded; use DDP"
        )
    for method in methods:
        if why := method.why_not_sharded():
            raise PerdureError(f"FSDP2: {method.name} {why}; use DDP, or another method")
    if config.quantization:
        raise PerdureError("FSDP2: a quantised base cannot be sharded; use DDP")
    if dev_settings(config.training).metric == "score":
        raise PerdureError(
            "FSDP2: sharded weights cannot answer the dev rows during a task; set "
            "training.metric_for_best_model=loss, or use DDP"
        )
    if processes.is_on("FSDP_OFFLOAD_PARAMS"):
        raise PerdureError(
            "FSDP2: methods expect the weights on their device; leave out --fsdp_offload_params, "
            "or use more processes"
        )
    if processes.is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise PerdureError(
            "FSDP2: activation checkpointing renames the weights; leave out "
            "--fsdp_activation_checkpointing, and set training.gradient_checkpointing=true"
        )


def _parallelism() -> str | None:
    """Return which kind of parallelism was chosen that cannot be used, and why; or None."""
    if processes.is_on("ACCELERATE_USE_DEEPSPEED"):
        return (
            "DeepSpeed: it steps inside backward, where no method can act, and with ZeRO-3 the "
            "weights are empty between the steps"
        )
    if processes.is_on("ACCELERATE_USE_MEGATRON_LM"):
        return "Megatron-LM: it replaces the model and the step, in which methods act"
    if not processes.is_on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return None
    kinds = {
        "TP": "tensor parallelism",
        "CP": "context parallelism",
        "SP": "sequence parallelism",
        "DP_SHARD": "sharding by a parallelism config",
    }
    for key, kind in kinds.items():
        if int(os.environ.get(f"PARALLELISM_CONFIG_{key}_SIZE") or 1) > 1:
            return f"{kind}: no process has whole rows and whole weights, which methods need"
    return None
