"""Replay with the compute of Recurrent-KIF: as many remembered rows as in its outer steps."""

from dataclasses import replace
from typing import Any

from perdure.comparison.grid import Grid, Line, with_overrides
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.prepare.settings import check_settings


def matched(grid: Grid) -> Grid:
    """The grid with replay's `ratio` set in every line with replay, if `compute_matched` is set.

    Each such line is matched with Recurrent-KIF at the same values of the grid's other keys.

    Raises:
        PerdureError: the grid has no replay, no Recurrent-KIF, or several with different ratios; or
            trials choose what decides a ratio, after replay was matched.
    """
    if not grid.compute_matched:
        return grid
    for line in grid.lines:
        _check_choice(line, grid)
    lines = [_matched(line, grid) for line in grid.lines]
    if lines == grid.lines:
        raise PerdureError(
            "compute_matched: sets the ratio of replay, which is not in the grid; add replay, or "
            "leave compute_matched out"
        )
    return replace(grid, lines=lines)


def ratio(line: Line) -> float | None:
    """The remembered rows in Recurrent-KIF's outer steps for each new row; None without it.

    With S outer steps on b rows after every Q steps on B rows, it is S b / (Q B). The last, shorter
    round of a task also has S outer steps, so the true ratio is a little larger.
    """
    methods, args = check_settings(load_config(line.settings))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    for method in methods:
        if isinstance(method, RecurrentKIF):
            rows = method.outer_steps * method.outer_rows(batch)
            return rows / (method.inner_steps * batch)
    return None


def _check_choice(line: Line, grid: Grid) -> None:
    """Check that no value that may be chosen for a line decides a ratio.

    Raises:
        PerdureError: one does.
    """
    if grid.choose is None or line.constant:
        return
    key, values = grid.choose.trials(line.method)
    settings = [with_overrides(line.settings, {key: value}) for value in values]
    if key != "method.replay.ratio":
        own = ratio(line)
        if own is None or all(ratio(replace(line, settings=s)) == own for s in settings):
            return
    raise PerdureError(
        f"compute_matched: {key} decides how many remembered rows {line.name} processes, and "
        "replay is matched before trials choose it; choose another key, or leave compute_matched "
        "out"
    )


def _matched(line: Line, grid: Grid) -> Line:
    method, keywords_by_method = line.settings["method"], {}
    parts = method if isinstance(method, list) else [method]
    for part in parts:
        keywords_by_method |= part if isinstance(part, dict) else {part: {}}
    if "replay" not in keywords_by_method:
        return line
    ratio_by_line = {
        other.name: ratio(other) for other in grid.lines if other.varied == line.varied
    }
    ratios = {name: value for name, value in ratio_by_line.items() if value is not None}
    if not ratios:
        raise PerdureError(
            f"compute_matched: there is no recurrent_kif to match {line.name} with; add it to the "
            "grid, or leave compute_matched out"
        )
    if len(set(ratios.values())) > 1:
        listed_ratios = ", ".join(f"{name}: {value:g}" for name, value in ratios.items())
        raise PerdureError(
            f"compute_matched: {line.name} cannot match different ratios of remembered rows "
            f"({listed_ratios}); compare them in separate grids"
        )
    keywords: dict[str, Any] = dict(keywords_by_method["replay"] or {})
    if "ratio" in keywords:
        raise PerdureError(
            f"compute_matched: sets the ratio of {line.name}, which has one; leave out either that "
            "ratio or compute_matched"
        )
    keywords_by_method["replay"] = {**keywords, "ratio": next(iter(ratios.values()))}
    methods = [{name: settings} for name, settings in keywords_by_method.items()]
    return replace(
        line, settings={**line.settings, "method": methods if len(methods) > 1 else methods[0]}
    )
