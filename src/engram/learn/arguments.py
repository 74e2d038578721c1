"""`training:` of the YAML to `TrainingArguments`, minus what belongs to the engine."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from transformers import TrainingArguments

from engram.config import TRAINING
from engram.errors import EngramError, nearest


# Prefixes of the keys that the engine sets itself, with the reason it gives.
OWNED = {
    "output_dir": "the lineage decides where things lie",
    "seed": "set `seed:` beside `training:`",
    "data_seed": "set `seed:` beside `training:`",
    "resume": "the same command resumes by itself",
    "save_": "set `checkpoint_every:` beside `training:`",
    "eval_": "tasks are scored after each stage, see `scoring:`",
    "do_": "`engram learn` trains, `engram evaluate` scores",
    "load_best": "a stage is the end of its training",
    "metric_for_best": "a stage is the end of its training",
    "greater_is_better": "a stage is the end of its training",
    "push_to_hub": "a lineage is not pushed while it is trained",
    "hub_": "a lineage is not pushed while it is trained",
    "remove_unused": "Engram makes its own features",
    "label_": "Engram computes the task loss itself",
    "auto_find_batch": "the batch decides the bytes of a stage; choose it",
}
# Keys under which a method could not do its work, with the way out.
REFUSED = {
    "fp16": "its gradients are scaled when methods read them; use bf16",
    "deepspeed": "it steps inside backward, where no method can act; use FSDP2",
    "dataloader_num_workers": "remembered rows are drawn in the main process; leave it out",
    "optim_target_modules": "its optimizers step inside backward, where no method can act",
}


def check_training(training: dict[str, Any]) -> None:
    """Refuse keys that are not TrainingArguments', or that the engine owns.

    Raises:
        EngramError: with the nearest valid key, or the reason.
    """
    valid = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    for key in training:
        for owned, reason in OWNED.items():
            if key.startswith(owned):
                raise EngramError(f"training: {key!r} is the engine's own: {reason}")
        if key in REFUSED and training[key]:
            raise EngramError(f"training: {key!r} is not supported: {REFUSED[key]}")
        if key not in valid:
            raise EngramError(f"training: unknown key {key!r}; {nearest(key, valid)}")
    rate = training.get("learning_rate", 1)
    if not isinstance(rate, int | float) or rate <= 0:
        raise EngramError(f"training: learning_rate must be a number above 0, got {rate!r}")
    tracker_names(training.get("report_to"))


def training_arguments(
    training: dict[str, Any], work: Path, seed: int, checkpoint_every: int
) -> TrainingArguments:
    """The arguments of one task's Trainer.

    Raises:
        EngramError: a key or a value that TrainingArguments refuse.
    """
    check_training(training)
    settings = {
        "logging_strategy": "steps" if tracker_names(training.get("report_to")) else "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
        **TRAINING,
        **training,
        "report_to": "none",  # the trackers it names are opened by `tracking.Tracked`
    }
    try:
        return TrainingArguments(
            output_dir=str(work),
            seed=seed % 2**32,
            save_strategy="steps" if checkpoint_every else "no",
            save_steps=checkpoint_every or 500,
            save_total_limit=2,
            remove_unused_columns=False,
            **settings,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise EngramError(f"training: {' '.join(str(error).split())[:200]}") from error


def tracker_names(report_to: Any) -> list[str]:
    """The trackers that a `report_to` names, as `TrainingArguments` take it.

    Raises:
        EngramError: a tracker that accelerate does not know, or that is not installed.
    """
    given = report_to if isinstance(report_to, list | tuple) else [report_to or "none"]
    installed = [str(tracker) for tracker in get_available_trackers()]
    names: list[str] = []
    for name in given:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all", "none"):
            close = nearest(str(name), [*LOGGER_TYPE_TO_CLASS, "all", "none"])
            raise EngramError(f"training: report_to: unknown tracker {name!r}; {close}")
        if name in LOGGER_TYPE_TO_CLASS and name not in installed:
            raise EngramError(
                f"training: report_to: {name} is not installed; pip install {name}, or leave it out"
            )
        names += installed if name == "all" else [name] if name != "none" else []
    return list(dict.fromkeys(names))
