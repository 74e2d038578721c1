"""Fifteen tasks in a row: where identification should pay, and the paper's ablation.

    python benchmarks/long_sequence.py --data FOLDER --jobs 2

The Long Sequence benchmark on all-MiniLM-L6-v2 with LoRA: three published orders, two seeds, 300
rows a task. Replay passes as many remembered rows as Recurrent-KIF's outer steps. The ablation
changes one thing of the preset `paper`, at the rate that this chose, on order 1 with four seeds.
How cells are run: `cells.py`.
"""

from typing import Any

from cells import Benchmark, Trial, main
from long_sequence_table import PUBLISHED, markdown, summarize
from standard_cl_cell import HALF


RATES = (1e-3, 2e-3, 5e-4)


def rates(method: Any) -> list[Trial]:
    return [Trial(method, rate) for rate in RATES]


def paper(**changed: Any) -> list[Trial]:
    return rates({"recurrent_kif": {"preset": "paper", **changed}})


def fusion(**pairs: tuple[float, float]) -> dict[str, list[float]]:
    """The paper's table with other weights for some cases."""
    table = {"both": (1, 1), "inner": (1, 0), "outer": (0, 1), "neither": (0, 0)} | pairs
    return {case: [float(w) for w in pair] for case, pair in table.items()}


ALL = dict.fromkeys(("both", "inner", "outer", "neither"), (1, 1))
TRIALS = {
    "constant": [Trial("sequential", 0.0)],  # learns nothing: the most common answer of each task
    "sequential": rates("sequential"),
    "joint": rates("sequential"),  # on the union of the tasks, from the base: the upper bound
    "replay": rates({"replay": {"ratio": 0.5}}),
    "ewc": rates({"ewc": {"strength": 5.0}}),  # about what methods.py's trials chose, 1e4 times F
    "olora": rates({"olora": {"strength": 0.5}}),  # that of its trials
    "tasl": rates("tasl"),
    "recurrent_kif_paper": paper(),
    "recurrent_kif_release": rates({"recurrent_kif": {"preset": "release"}}),
    "mask_free": paper(fusion=HALF),
    # the ablation; `full` is recurrent_kif_paper with more seeds
    "full": paper(),
    "no_refresh": paper(refresh=False),
    "no_masks": paper(fusion=fusion(**ALL)),
    "one_pair": paper(fusion=HALF),
    "soft_weights": paper(fusion={"soft": 0.25}),
    "no_shared": paper(fusion=fusion(both=(0, 0))),
    "slow_map": paper(beta_outer=0.98),  # not of the paper: whether refreshing costs by its noise
}
ABLATION = tuple(PUBLISHED)

LONG_SEQUENCE = Benchmark(
    name="long_sequence",
    trials=TRIALS,
    smaller={
        "stream": "long_sequence",
        "train_rows": 300,
        "held_out_rows": 60,
        "test_rows": 100,
        "memory_rows": 10,
    },
    batch=4,  # so that 300 rows are 75 steps
    orders=(1, 2, 3),
    seeds=(0, 1),
    follows=dict.fromkeys(ABLATION, "recurrent_kif_paper"),
    follow_seeds=(0, 1, 2, 3),
)

if __name__ == "__main__":
    main(LONG_SEQUENCE, summarize, markdown)
