"""`perdure compare`: methods on the same task orders and seeds, side by side."""

import inspect
from typing import Any

import typer
from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.dry_run import planned_cells, size, span
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    complain,
    counted,
    grid,
    print_json,
    print_parts,
    quiet,
    score,
    stderr_line,
)
from perdure.config import overrides
from perdure.errors import PerdureError


SETTINGS = ("grid", "data")  # parameters of the verb that are keys of its settings too


@command(api.compare, grid="FILE.yaml", ray="--ray ADDRESS")
def compare(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure compare examples/grid.yaml --jobs 2"""
    quiet()
    file, settings = arguments.pop("grid"), overrides(arguments.pop("settings", None))
    for key in settings:
        if key in inspect.signature(api.compare).parameters and key not in SETTINGS:
            option = f"--{key.replace('_', '-')}"
            raise PerdureError(f"{key}: unknown key; write {option} if that is meant")
    comparison = api.compare(file, **(settings | arguments), say=stderr_line)
    if as_json:
        print_json(comparison)
    elif arguments["dry_run"]:
        print_parts(planned_cells(comparison))
    else:
        print_parts(parts(comparison))
    if not arguments["dry_run"]:
        _complain_of_broken(comparison["cells"])


def _complain_of_broken(cells: list[dict[str, Any]]) -> None:
    """End with status 1 if a cell broke, and say why the first one did."""
    broken = [cell for cell in cells if cell["error"]]
    if broken:
        first = f"{broken[0]['line']}, {broken[0]['order']}, seed {broken[0]['seed']}"
        complain(
            f"{len(broken)} of {counted(len(cells), 'cell')} failed: {first}: {broken[0]['error']}"
        )
        raise typer.Exit(1)


def parts(comparison: dict[str, Any]) -> list[RenderableType]:
    """What a person is told of a comparison."""
    lines = [
        "OP: the mean score after the last stage, ± over all cells; [..]: the 95 % interval over",
        "orders, the seeds of an order averaged. With fewer than three orders there is none, and",
        "the numbers hold on these orders.",
        *(_about_baseline(comparison["baseline"]) if comparison["baseline"] else ()),
        *_chosen(comparison),
        f"results:      {comparison['folder']}/compare.json",
    ]
    return [scores(comparison), costs(comparison), Text("\n".join(lines))]


def scores(comparison: dict[str, Any]) -> RenderableType:
    """How well each line of the comparison does."""
    right = ["cells", "OP", "BWT", "FWT"]
    if comparison["baseline"]:
        right.insert(2, f"OP - {comparison['baseline']}")
    published = any(line["published"] for line in comparison["lines"])
    right += ["published OP", "published BWT"] if published else []
    table = grid("method", *right, right=right)
    for line in comparison["lines"]:
        cells = [f"{line['cells']} of {line['of']}", spread(line["overall"])]
        if comparison["baseline"]:
            cells.append(difference(line["to_baseline"]))
        means = [line[key]["mean"] for key in ("backward_transfer", "forward_transfer")]
        cells += [score(value, sign=True) for value in means]
        if published:
            theirs = line["published"] or {}
            cells += [
                score(theirs.get("overall")),
                score(theirs.get("backward_transfer"), sign=True),
            ]
        table.add_row(Text(line["name"]), *cells)
    return table


def costs(comparison: dict[str, Any]) -> RenderableType:
    """What each line costs, a mean over its cells; the peak is the largest."""
    right = [
        "time",
        "CPU time",
        "rows forward",
        "rows back",
        "rows kept",
        "kept",
        "peak memory",
        "trained",
    ]
    table = grid("method", *right, right=right)
    for line in comparison["lines"]:
        spent = comparison["costs"]["lines"][line["name"]]
        table.add_row(
            Text(line["name"]),
            _known(spent["seconds"], span),
            _known(spent["cpu_seconds"], span),
            *(_known(line["rows"][way], _count) for way in ("forward", "backward")),
            _known(line["stored_rows"], _count),
            _known(line["stored_bytes"], size),
            _known(spent["peak_memory_bytes"], size),
            _known(line["trainable"], _count),
        )
    return table


def spread(value: dict[str, Any]) -> str:
    """Mean, standard deviation and interval of a score."""
    if value["deviation"] is None:
        return score(value["mean"])
    text = f"{value['mean']:.3f} ± {value['deviation']:.3f}"
    if value["low"] is None:
        return text
    return f"{text} [{score(value['low'])}, {score(value['high'])}]"


def difference(to_baseline: dict[str, Any] | None) -> str:
    """A mean difference and its interval; what differs after Holm's correction, and noise."""
    value = (to_baseline or {}).get("overall")
    if value is None or value["low"] is None:
        return score(value and value["mean"], sign=True)
    low, high = (score(value[end], sign=True) for end in ("low", "high"))
    mark = " *" if value["differs"] else " noise" if value["within_noise"] else ""
    return f"{value['mean']:+.3f} [{low}, {high}]{mark}"


def _about_baseline(baseline: str) -> list[str]:
    return [
        f"OP - {baseline}: the mean difference within (order, seed) pairs; noise: its interval",
        "contains 0; *: it differs after Holm's correction for so many comparisons as well.",
    ]


def _chosen(comparison: dict[str, Any]) -> list[str]:
    chosen = (comparison["choose"] or {}).items()
    return [
        f"chosen:       {name}: {c['key']}={c['chosen']}" for name, c in chosen if not c["error"]
    ]


def _known(value: Any, shown: Any) -> str:
    return "-" if value is None else shown(value)


def _count(number: float) -> str:
    return f"{number:,.0f}"
