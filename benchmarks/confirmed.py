"""Is the candidate ahead in what it learned and in what it left alone, taken together?

`tables.py` writes the answer to benchmarks/README.md, from the grids that confirm the candidate.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from table_text import difference_text, markdown

from perdure.comparison.summary import difference, mark_what_differs


RESULTS = Path(__file__).parent / "results"
CANDIDATE = "kif_kl_lasting"
STREAMS = {"smollm2_assistant_confirm": "assistant", "smollm2_superni_confirm": "SuperNI"}
Cells = dict[Any, dict[str, Any]]


def together(differences: np.ndarray) -> float | None:
    """The p-value of Hotelling's T^2: that the mean of vectors of differences is zero.

        T^2 = n d' S^-1 d;   F = (n - k) / (k (n - 1)) T^2, with (k, n - k) degrees of freedom

    where d is the mean of the n vectors and S their covariance. None if there are at most k.

    Args:
        differences: [n, k], a vector for each order of the tasks.
    """
    n, k = differences.shape
    if n <= k:
        return None
    mean = differences.mean(0)
    covariance = np.atleast_2d(np.cov(differences, rowvar=False))
    if not np.linalg.det(covariance) > 0:
        return None
    t_squared = n * mean @ np.linalg.solve(covariance, mean)
    return float(stats.f.sf((n - k) / (k * (n - 1)) * t_squared, k, n - k))


def table() -> str:
    """The candidate minus each other line of the grids that confirm it."""
    lines = []
    for name, stream in STREAMS.items():
        if (RESULTS / f"{name}.json").exists():
            lines += _lines(name, stream)
    heads = ("stream", "candidate minus", "orders", "OP", "checks that fell", "together, p")
    return markdown(heads, lines, text_columns=2)


def _lines(name: str, stream: str) -> list[list[str]]:
    methods: dict[str, Cells] = {}
    for record in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["records"]:
        cells = methods.setdefault(record["method"], {})
        cells[record["order"], record["seed"]] = record
    ours = methods.pop(CANDIDATE)
    compared = {
        key: [_difference(ours, cells, key) for cells in methods.values()]
        for key in ("overall", "flips")
    }
    for differences in compared.values():
        mark_what_differs(differences)
    lines = []
    for number, (method, theirs) in enumerate(methods.items()):
        overall, fell = (compared[key][number] for key in ("overall", "flips"))
        pairs = [pair for pair in ours if pair in theirs]
        both = [[ours[pair][k] - theirs[pair][k] for k in ("overall", "flips")] for pair in pairs]
        p = together(np.array(both))
        lines.append(
            [
                stream,
                f"`{method}`",
                str(overall["orders"]),
                difference_text(overall),
                difference_text(fell, ".1f"),
                "-" if p is None else f"{p:.3f}",
            ]
        )
    return lines


def _difference(ours: Cells, theirs: Cells, key: str) -> dict[str, Any]:
    values = ({pair: r[key] for pair, r in cells.items()} for cells in (ours, theirs))
    return difference(*values)
