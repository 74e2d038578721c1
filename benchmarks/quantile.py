"""Times the exact threshold and a Recurrent-KIF round on a flat buffer, against the usual ways.

    python benchmarks/quantile.py

It runs in one process with one thread, interleaves the methods and takes medians. It prints ratios,
because times on different machines cannot be compared, but ratios nearly can.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.methods.recurrent_kif.fusion import FusionTable, fuse
from perdure.methods.shared.importance import (
    Importance,
    flatten,
    important,
    quantile_threshold,
    score,
    update,
    write_back,
)
from perdure.reporting.results import write


RESULTS = Path(__file__).parent / "results" / "quantile.json"
TORCH_QUANTILE_LIMIT = 2**24
# LoRA with r = 8 of T5-large and of a 7B Llama, and one more than the limit of torch.quantile.
SIZES = (288 * 8192, 2**22, TORCH_QUANTILE_LIMIT + 1)
REPEATS = 7
NUM_TENSORS, TENSOR_SIZE = 288, 8192
INNER_STEPS, OUTER_STEPS, BETA, Q = 8, 4, 0.85, 0.8
RELEASE = FusionTable(both=(0.4, 0.6), inner=(1, 0), outer=(0, 1), neither=(0.5, 0.5))


def interleaved(methods: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each method, which run in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(REPEATS + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def thresholds(n: int) -> list[dict[str, Any]]:
    """Records of the ways to find the threshold of n scores; all give the same one."""
    scores = (torch.randn(n) * torch.randn(n)).square_().mul_(1e-12)
    rank = 8 * (n - 1) // 10
    methods: dict[str, Callable[[], Any]] = {
        "perdure": lambda: quantile_threshold(scores, Q),
        "numpy_partition": lambda: np.partition(scores.numpy(), rank)[rank],
        "torch_kthvalue": lambda: scores.kthvalue(rank + 1).values,
    }
    assert len({float(method()) for method in methods.values()}) == 1
    if n <= TORCH_QUANTILE_LIMIT:
        methods["torch_quantile"] = lambda: torch.quantile(scores, Q)
    seconds = interleaved(methods)
    return [
        {
            "method": name,
            "n": n,
            "seconds": seconds[name],
            "ratio_to_torch_quantile": ratio(seconds, name, "torch_quantile"),
            "ratio_to_torch_kthvalue": ratio(seconds, name, "torch_kthvalue"),
        }
        for name in seconds
    ]


def ratio(seconds: dict[str, float], name: str, reference: str) -> float | None:
    return seconds[name] / seconds[reference] if reference in seconds else None


def rounds() -> list[dict[str, Any]]:
    """Records of a round without the training: score 8 + 4 gradients, mask twice, and fuse."""
    parameters = [torch.nn.Parameter(torch.randn(TENSOR_SIZE)) for _ in range(NUM_TENSORS)]
    for parameter in parameters:
        parameter.grad = torch.randn(TENSOR_SIZE) * 1e-4
    seconds = interleaved(
        {
            "flat_buffer": lambda: flat_round(parameters),
            "per_tensor_loop": lambda: loop_round(parameters, quantile_threshold),
            "per_tensor_loop_torch_quantile": lambda: loop_round(parameters, torch.quantile),
        }
    )
    return [
        {
            "method": name,
            "n": NUM_TENSORS * TENSOR_SIZE,
            "num_tensors": NUM_TENSORS,
            "seconds": seconds[name],
            "ratio_to_per_tensor_loop": ratio(seconds, name, "per_tensor_loop"),
        }
        for name in seconds
    ]


def flat_round(parameters: list[torch.nn.Parameter]) -> None:
    """A round as Recurrent-KIF computes it."""
    start = flatten(parameters)
    points, masks = [], []
    for num_steps in (INNER_STEPS, OUTER_STEPS):
        state = Importance.zeros(start, "sensitivity_uncertainty")
        for _ in range(num_steps):
            update(
                state,
                parameters,
                [parameter.grad for parameter in parameters],
                beta_sensitivity=BETA,
                beta_uncertainty=BETA,
            )
        points.append(flatten(parameters))
        masks.append(important(score(state), Q))
    fused = fuse(
        start,
        inner=points[0],
        outer=points[1],
        inner_mask=masks[0],
        outer_mask=masks[1],
        table=RELEASE,
    )
    write_back(fused, parameters)


@torch.no_grad()
def loop_round(
    parameters: list[torch.nn.Parameter], threshold: Callable[[Tensor, float], Tensor]
) -> None:
    """A round in loops over the parameters, as in the released code."""
    points, masks = [[p.clone() for p in parameters]], []
    for num_steps in (INNER_STEPS, OUTER_STEPS):
        sensitivity = [torch.zeros_like(p) for p in parameters]
        uncertainty = [torch.zeros_like(p) for p in parameters]
        for _ in range(num_steps):
            for i, p in enumerate(parameters):
                assert p.grad is not None
                if torch.isnan(p.grad).any():
                    break
                moment = (p * p.grad).abs()
                sensitivity[i] = BETA * sensitivity[i] + (1 - BETA) * moment
                deviation = (moment - sensitivity[i]).abs()
                uncertainty[i] = BETA * uncertainty[i] + (1 - BETA) * deviation
        points.append([p.clone() for p in parameters])
        scores = [s * u for s, u in zip(sensitivity, uncertainty, strict=True)]
        limit = threshold(torch.cat(scores), Q)
        masks.append([s > limit for s in scores])
    for p, start, inner, outer, m_in, m_out in zip(parameters, *points, *masks, strict=True):
        w_in = torch.where(m_in, torch.where(m_out, 0.4, 1.0), torch.where(m_out, 0.0, 0.5))
        w_out = torch.where(m_out, torch.where(m_in, 0.6, 1.0), torch.where(m_in, 0.0, 0.5))
        p.copy_(start + w_in * (inner - start) + w_out * (outer - inner))


def show(record: dict[str, Any]) -> str:
    ratios = {key: value for key, value in record.items() if key.startswith("ratio_to_")}
    cells = (f"{value:.3f}" if value is not None else "-" for value in ratios.values())
    return f"{record['method']:32}{record['n']:>10}" + "".join(f"{cell:>16}" for cell in cells)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    records = [record for n in SIZES for record in thresholds(n)]
    print(f"{'threshold':32}{'n':>10}{'/ quantile':>16}{'/ kthvalue':>16}")
    print(*map(show, records), sep="\n")
    round_records = rounds()
    print(f"\n{'round':32}{'n':>10}{'/ loop':>16}")
    print(*map(show, round_records), sep="\n")
    write(
        RESULTS,
        benchmark="quantile",
        command="python benchmarks/quantile.py",
        device="cpu, 1 thread",
        records=records + round_records,
    )


if __name__ == "__main__":
    main()
