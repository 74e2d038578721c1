"""Replay on the compute of Recurrent-KIF: as many remembered rows as its outer steps pass."""

from dataclasses import replace
from typing import Any

from perdure.comparison.grid import Grid, Line
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.prepare.settings import check_settings


def matched(grid: Grid) -> Grid:
    """The grid with replay's `ratio` set in every line that replays; unchanged if not asked for.

    Each such line is matched with Recurrent-KIF under the same values of the grid's other keys.

    Raises:
        PerdureError: nothing to match, nothing to match it with, or two different things.
    """
    if not grid.compute_matched:
        return grid
    lines = [_matched(line, grid) for line in grid.lines]
    if lines == grid.lines:
        raise PerdureError(
            "compute_matched: no method of the grid is replay, whose ratio it would set; add "
            "replay, or leave compute_matched out"
        )
    return replace(grid, lines=lines)


def ratio(line: Line) -> float | None:
    """Remembered rows that Recurrent-KIF's outer steps pass for each new row; None without it.

    S outer steps of b rows after every Q steps on batches of B rows: S b / (Q B). The last, shorter
    round of a task has all S steps as well, so it passes a little more than this.
    """
    methods, args = check_settings(load_config(line.settings))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    for method in methods:
        if isinstance(method, RecurrentKIF):
            rows = method.outer_steps * (method.outer_batch_size or batch)
            return rows / (method.inner_steps * batch)
    return None


def _matched(line: Line, grid: Grid) -> Line:
    method, keywords_by_method = line.settings["method"], {}
    parts = method if isinstance(method, list) else [method]
    for part in parts:
        keywords_by_method |= part if isinstance(part, dict) else {part: {}}
    if "replay" not in keywords_by_method:
        return line
    others = [other for other in grid.lines if other.varied == line.varied]
    ratios = {
        other.name: rows_ratio for other in others if (rows_ratio := ratio(other)) is not None
    }
    if not ratios:
        raise PerdureError(
            f"compute_matched: there is no recurrent_kif to match {line.name} with; add it to the "
            "grid, or leave compute_matched out"
        )
    if len(set(ratios.values())) > 1:
        listed_ratios = ", ".join(f"{name}: {value:g}" for name, value in ratios.items())
        raise PerdureError(
            f"compute_matched: {line.name} cannot match rows per new row that differ "
            f"({listed_ratios}); compare them in grids of their own"
        )
    keywords: dict[str, Any] = dict(keywords_by_method["replay"] or {})
    if "ratio" in keywords:
        raise PerdureError(
            f"compute_matched: sets the ratio of {line.name}; leave its ratio out, or "
            "compute_matched"
        )
    keywords_by_method["replay"] = {**keywords, "ratio": next(iter(ratios.values()))}
    methods = [{name: settings} for name, settings in keywords_by_method.items()]
    return replace(
        line, settings={**line.settings, "method": methods if len(methods) > 1 else methods[0]}
    )
