"""What `methods.py` compares: for each method its two trials, one keyword or the rate apart."""

from typing import Any

from cells import Trial


RATE = 2e-3  # the best of the trials of `sequential`; where another keyword is tried, everyone's
RATES = (1e-3, 2e-3)
WHOLE_RATES = (5e-5, 2e-4)


def rates(method: Any, of: tuple[float, ...] = RATES, **changed: Any) -> list[Trial]:
    return [Trial(method, rate, changed) for rate in of]


def keyword(name: str, key: str, *values: Any, **more: Any) -> list[Trial]:
    return [Trial({name: {key: value, **more}}, RATE) for value in values]


SEQUENTIAL, WHOLE = "sequential", {"adapter": None}
TRIALS: dict[str, list[Trial]] = {
    "sequential": rates(SEQUENTIAL),
    "joint": rates(SEQUENTIAL),  # on the union of the tasks, from the base: the upper bound
    "replay": rates({"replay": {"ratio": 0.5}}),
    "replay_power_law": keyword("replay", "decay", 0.5, 1.0, ratio=0.5),
    "replay_surprise": rates({"replay": {"ratio": 0.5}}, memory={"choose": "surprise"}),
    "recurrent_kif_paper": rates({"recurrent_kif": {"preset": "paper"}}),
    "recurrent_kif_release": rates({"recurrent_kif": {"preset": "release"}}),
    "l2": keyword("l2", "strength", 0.1, 1.0),
    "ewc": keyword("ewc", "strength", 1.0, 10.0),
    "mas": keyword("mas", "strength", 0.1, 1.0),
    "si": keyword("si", "strength", 0.1, 1.0),
    "lwf": keyword("lwf", "strength", 0.5, 2.0),
    "feature_distillation": keyword("feature_distillation", "strength", 10.0, 100.0),
    "der": keyword("der", "alpha", 0.2, 1.0),
    "agem": rates("agem"),
    "migu": rates("migu"),
    "hft": rates("hft"),
    "slao": rates("slao"),
    "tasl": rates("tasl"),
    "olora": keyword("olora", "strength", 0.05, 0.5),
    "inflora": rates("inflora"),
    "dmt": rates("dmt"),
    "mix_review": rates({"mix_review": {"mix": 1.0}}),
    "fpf": keyword("fpf", "steps", 8, 32),
    "k_fpf": keyword("k_fpf", "k", 4, 12),
    "wise_ft": keyword("wise_ft", "share", 0.5, None),
    "sequential_whole": rates(SEQUENTIAL, WHOLE_RATES, **WHOLE),
    "osf": [Trial({"osf": {"share": share}}, WHOLE_RATES[-1], WHOLE) for share in (0.25, 0.75)],
}
