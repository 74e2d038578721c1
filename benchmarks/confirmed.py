"""Is the candidate ahead in what it learned and in what it left alone, taken together?

`tables.py` writes the answer to benchmarks/README.md, from the grids that confirm the candidate.
"""

import numpy as np
from choosing import RESULTS, Results
from scipy import stats
from table_text import difference_text, markdown

from perdure.comparison.summary import difference, mark_what_differs


CANDIDATE = "kif_kl_lasting"
STREAMS = {"smollm2_assistant_confirm": "assistant", "smollm2_superni_confirm": "SuperNI"}
KEYS = ("overall", "flips")  # OP, and the checks that fell


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
    results = Results(name)
    others = [method for method in results.methods if method != CANDIDATE]
    ours = {key: results.known(CANDIDATE, key) for key in KEYS}
    compared = {
        key: [difference(ours[key], results.known(other, key)) for other in others] for key in KEYS
    }
    for differences in compared.values():
        mark_what_differs(differences)
    lines = []
    for number, other in enumerate(others):
        overall, fell = (compared[key][number] for key in KEYS)
        theirs = {key: results.known(other, key) for key in KEYS}
        pairs = [pair for pair in ours["overall"] if pair in theirs["overall"]]
        p = together(np.array([[ours[k][pair] - theirs[k][pair] for k in KEYS] for pair in pairs]))
        lines.append(
            [
                stream,
                f"`{other}`",
                str(overall["orders"]),
                difference_text(overall),
                difference_text(fell, ".1f"),
                "-" if p is None else f"{p:.3f}",
            ]
        )
    return lines
