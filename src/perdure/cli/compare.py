"""`perdure compare`: compare methods on the same task orders and seeds."""

import inspect
from collections.abc import Callable
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
from perdure.errors import LOST, PerdureError


LOSSES = (
    "learned: the mean score right after learning. Tasks, cells and checks are summed over cells;",
    "KL: its mean from the base in nats per token of the base's answers, after the last stage.",
)
SETTINGS = ("grid", "data")  # parameters of the verb that are also keys of a grid


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
        _fail_if_broken(comparison["cells"])


def _fail_if_broken(cells: list[dict[str, Any]]) -> None:
    """End with status 1 if a cell failed, with the first error, or with 3 if one was refused."""
    broken = [cell for cell in cells if cell["error"] and not cell["refused"]]
    refused = sum(cell["refused"] for cell in cells)
    if refused and not broken:
        complain(f"the gate refused {refused} of {counted(len(cells), 'cell')}")
        raise typer.Exit(LOST)
    if broken:
        first = f"{broken[0]['line']}, {broken[0]['order']}, seed {broken[0]['seed']}"
        complain(
            f"{len(broken)} of {counted(len(cells), 'cell')} failed: {first}: {broken[0]['error']}"
        )
        raise typer.Exit(1)


def parts(comparison: dict[str, Any]) -> list[RenderableType]:
    """The tables of a comparison, and how to read them."""
    lines = [
        "OP: the mean score after the last stage, ± the standard deviation over all cells; [..]:",
        "the 95 % interval over orders, with the seeds of an order averaged. With fewer than three",
        "orders there is no interval, and the numbers hold only for these orders.",
        *(_about_baseline(comparison["baseline"]) if comparison["baseline"] else ()),
        *_chosen(comparison),
        f"results:      {comparison['folder']}/compare.json",
    ]
    tables = [scores(comparison)]
    if any(_is_measured(line["lost"]) for line in comparison["lines"]):
        tables.append(losses(comparison))
        lines[3:3] = LOSSES
    return [*tables, costs(comparison), Text("\n".join(lines))]


def scores(comparison: dict[str, Any]) -> RenderableType:
    """The scores of each line of the comparison."""
    right = ["cells", "OP", "BWT", "FWT"]
    if comparison["baseline"]:
        right.insert(2, f"OP - {comparison['baseline']}")
    published = any(line["published"] for line in comparison["lines"])
    right += ["published OP", "published BWT"] if published else []
    table = grid("method", *right, right=right)
    for line in comparison["lines"]:
        refused = f", {line['refused']} refused" if line["refused"] else ""
        cells = [f"{line['cells']} of {line['of']}{refused}", spread(line["overall"])]
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


def losses(comparison: dict[str, Any]) -> RenderableType:
    """What each line learned, and what its cells have lost."""
    right = ["learned", "tasks lost", "general ability lost", "checks that fell", "rose", "KL"]
    table = grid("method", *right, right=right)
    for line in comparison["lines"]:
        lost = line["lost"]
        general = None if lost["general"] is None else f"{lost['general']} of {lost['judged']}"
        fell = None if lost["fell"] is None else f"{lost['fell']} of {lost['passed_by_reference']}"
        table.add_row(
            Text(line["name"]),
            score(line["learning_accuracy"]["mean"]),
            _known(lost["tasks"], str),
            _known(general, str),
            _known(fell, str),
            _known(lost["rose"], str),
            score(lost["kl"]),
            style="red" if lost["tasks"] or lost["general"] else "",
        )
    return table


def _is_measured(lost: dict[str, Any]) -> bool:
    return lost["tasks"] is not None or lost["fell"] is not None


def costs(comparison: dict[str, Any]) -> RenderableType:
    """The costs of each line: means over its cells, but the maximum of the peak memory."""
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
        line_costs = comparison["costs"]["lines"][line["name"]]
        table.add_row(
            Text(line["name"]),
            _known(line_costs["seconds"], span),
            _known(line_costs["cpu_seconds"], span),
            _known(line["rows"]["forward"], _count),
            _known(line["rows"]["backward"], _count),
            _known(line["stored_rows"], _count),
            _known(line["stored_bytes"], size),
            _known(line_costs["peak_memory_bytes"], size),
            _known(line["trainable"], _count),
        )
    return table


def spread(value: dict[str, Any]) -> str:
    """The mean, standard deviation and interval of a score, as text."""
    if value["deviation"] is None:
        return score(value["mean"])
    text = f"{value['mean']:.3f} ± {value['deviation']:.3f}"
    if value["low"] is None:
        return text
    return f"{text} [{score(value['low'])}, {score(value['high'])}]"


def difference(to_baseline: dict[str, Any] | None) -> str:
    """A mean difference with its interval, and a mark for significance or noise, as text."""
    value = (to_baseline or {}).get("overall")
    if value is None or value["low"] is None:
        return score(value and value["mean"], sign=True)
    low, high = (score(value[end], sign=True) for end in ("low", "high"))
    mark = " *" if value["differs"] else " noise" if value["within_noise"] else ""
    return f"{value['mean']:+.3f} [{low}, {high}]{mark}"


def _about_baseline(baseline: str) -> list[str]:
    return [
        f"OP - {baseline}: the mean difference within (order, seed) pairs; noise: its interval",
        "contains 0; *: it also differs after Holm's correction for all these comparisons.",
    ]


def _chosen(comparison: dict[str, Any]) -> list[str]:
    """The hyper-parameters that the trials have chosen, one line for each method."""
    return [
        f"chosen:       {name}: {choice['key']}={choice['chosen']}"
        for name, choice in (comparison["choose"] or {}).items()
        if not choice["error"]
    ]


def _known(value: Any, to_text: Callable[[Any], str]) -> str:
    return "-" if value is None else to_text(value)


def _count(number: float) -> str:
    return f"{number:,.0f}"
