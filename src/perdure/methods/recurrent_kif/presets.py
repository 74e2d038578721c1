"""The keywords of Recurrent-KIF according to its two sources, and a set of our own.

`paper` follows the paper. `release` has the fusion table, betas, score and learning rate of the
released code, but not its faults. OPEN lists what a source leaves open, with the reason for our
value.

`lasting` is from this project: the old tasks' map hardly fades from round to round, a weight that
neither side needs keeps the new update, so only what the old tasks need is protected, and a memory
step has four times the rows of a training step. It was measured on a chat model beside `kl_base`
(docs/identification.md).
"""

from typing import Any


RECURRENT_KIF: dict[str, dict[str, Any]] = {
    "paper": {
        "inner_steps": 8,
        "outer_steps": 4,
        "quantile": 0.8,
        "fusion": {"both": (1, 1), "inner": (1, 0), "outer": (0, 1), "neither": (0, 0)},
        "score": "sensitivity",
        "beta_inner": 0.55,
        "beta_outer": 0.55,
        "beta_uncertainty": 0.55,
        "outer_learning_rate": None,
        "outer_schedule": "inner",
        "outer_batch_size": None,
        "outer_ratio": 1.0,
        "outer_optimizer": "own",
        "momentum": "keep",
        "quantile_over": "all",
        "agree": False,
        "restore": "round",
        "unit": "weight",
        "written": 0,
    },
    "release": {
        "inner_steps": 8,
        "outer_steps": 4,
        "quantile": 0.8,
        "fusion": {"both": (0.4, 0.6), "inner": (1, 0), "outer": (0, 1), "neither": (0.5, 0.5)},
        "score": "sensitivity_uncertainty",
        "beta_inner": 0.85,
        "beta_outer": 0.85,
        "beta_uncertainty": 0.85,
        "outer_learning_rate": 1e-3,
        "outer_schedule": "constant",
        "outer_batch_size": None,
        "outer_ratio": 1.0,
        "outer_optimizer": "own",
        "momentum": "keep",
        "quantile_over": "all",
        "agree": False,
        "restore": "round",
        "unit": "weight",
        "written": 0,
    },
}
RECURRENT_KIF["lasting"] = RECURRENT_KIF["paper"] | {
    "fusion": {"both": (1, 1), "inner": (1, 0), "outer": (0, 1), "neither": (1, 0)},
    "beta_outer": 0.95,
    "outer_ratio": 4.0,
}

# The sources' settings of `training:`, which users can copy; a preset does not set them. The paper
# does not give any; those of the release are from its script for T5-large.
TRAINING: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "learning_rate": 3e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 50,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    },
}

OPEN: dict[str, dict[str, str]] = {
    "paper": {
        "beta_uncertainty": "not used, as the score has no uncertainty",
        "outer_learning_rate": "not given; null uses that of the training",
        "outer_schedule": "not given; both sides decay together",
        "outer_batch_size": "not given; null uses outer_ratio",
        "outer_ratio": "not given; a memory step has as many rows as a training step",
        "momentum": "not given; the inner optimizer keeps its moments",
    },
    "release": {
        "outer_schedule": "its code never advances the warm-up, which leaves the rate at zero",
    },
}
