"""`engram compare`: methods on the same task orders and seeds, side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from engram import api
from engram.cli.dry_run import planned_cells, size, span
from engram.cli.output import (
    Data,
    DryRun,
    Json,
    Settings,
    complain,
    counted,
    grid,
    print_json,
    quiet,
    score,
    stderr_line,
    stdout,
)
from engram.config import overrides
from engram.errors import EngramError


def compare(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The settings of a run, and a grid.")
    ],
    settings: Settings = None,
    jobs: Annotated[int, typer.Option(help="How many cells run at a time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run them on this Ray cluster; local makes one."),
    ] = None,
    data: Data = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run every method on the same task orders and seeds, and compare what they keep and cost.

    A cell that breaks stops no other. The same command again goes on where it stopped.

    Example: engram compare examples/grid.yaml --jobs 2
    """
    quiet()
    given = overrides(settings) | ({"data": str(data)} if data else {})
    for key in given:
        if key in ("jobs", "ray", "say"):  # arguments of the call, not settings
            raise EngramError(f"{key}: unknown key; write --{key} if that is meant")
    if dry_run:
        found = api.dry_run_of_compare(file, jobs, stderr_line, **given)
        print_json(found) if as_json else [stdout().print(part) for part in planned_cells(found)]
        return
    found = api.compare(file, jobs, stderr_line, ray, **given)
    print_json(found) if as_json else [stdout().print(part) for part in parts(found)]
    broken = [cell for cell in found["cells"] if cell["error"]]
    if broken:
        first = f"{broken[0]['line']}, {broken[0]['order']}, seed {broken[0]['seed']}"
        complain(
            f"{len(broken)} of {counted(len(found['cells']), 'cell')} broke: {first}: "
            f"{broken[0]['error']}"
        )
        raise typer.Exit(1)


def parts(found: dict[str, Any]) -> list[RenderableType]:
    """What a person is told of a comparison."""
    lines = [
        "OP: the mean score after the last stage, ± over all cells; [..]: the 95 % interval over",
        "orders, the seeds of an order averaged. With fewer than three orders there is none, and",
        "the numbers hold on these orders.",
        *(_about_baseline(found["baseline"]) if found["baseline"] else ()),
        *_chosen(found),
        f"results:      {found['folder']}/compare.json",
    ]
    return [scores(found), costs(found), Text("\n".join(lines))]


def scores(found: dict[str, Any]) -> RenderableType:
    """How well each line of the comparison does."""
    right = ["cells", "OP", "BWT", "FWT"]
    if found["baseline"]:
        right.insert(2, f"OP - {found['baseline']}")
    published = any(line["published"] for line in found["lines"])
    right += ["published OP", "published BWT"] if published else []
    table = grid("method", *right, right=right)
    for line in found["lines"]:
        cells = [f"{line['cells']} of {line['of']}", spread(line["overall"])]
        if found["baseline"]:
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


def costs(found: dict[str, Any]) -> RenderableType:
    """What each line costs, a mean over its cells; the peak is the largest."""
    right = ["time", "rows forward", "rows back", "rows kept", "kept", "peak memory", "trained"]
    table = grid("method", *right, right=right)
    for line in found["lines"]:
        spent = found["costs"]["lines"][line["name"]]
        table.add_row(
            Text(line["name"]),
            _known(spent["seconds"], span),
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
    said = f"{value['mean']:.3f} ± {value['deviation']:.3f}"
    if value["low"] is None:
        return said
    return f"{said} [{score(value['low'])}, {score(value['high'])}]"


def difference(found: dict[str, Any] | None) -> str:
    """A mean difference and its interval; what differs after Holm's correction, and noise."""
    value = (found or {}).get("overall")
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


def _chosen(found: dict[str, Any]) -> list[str]:
    made = (found["choose"] or {}).items()
    return [f"chosen:       {name}: {c['key']}={c['chosen']}" for name, c in made if not c["error"]]


def _known(value: Any, shown: Any) -> str:
    return "-" if value is None else shown(value)


def _count(number: float) -> str:
    return f"{number:,.0f}"
