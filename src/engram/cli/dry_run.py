"""What a dry run found, for people."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from engram.cli.output import counted, grid
from engram.reporting.results import method_name


COLUMNS = ("rows", "tokens", "longest", "truncated", "steps", "learning", "scoring")


def planned(found: dict[str, Any]) -> Iterator[RenderableType]:
    """A table of the tasks, and what they cost together."""
    table = grid("task", *COLUMNS, right=COLUMNS)
    seconds = zip(found["seconds_learning"], found["seconds_scoring"], strict=True)
    for task, (learning, scoring) in zip(found["tasks"], seconds, strict=True):
        count = task["count"]
        numbers = (count["rows"], count["tokens"], count["longest"], count["truncated"])
        cells = [*(f"{n:,}" for n in (*numbers, task["steps"])), span(learning), span(scoring)]
        table.add_row(Text(task["task"]), *cells)
    yield table
    trained = found["trainable"] / found["parameters"]
    lines = [
        f"base:        {found['base']} ({found['kind']}), on {found['device']}, "
        f"{counted(found['threads'], 'thread')}",
        f"method:      {method_name(found['method'], found['mode'])}",
        f"parameters:  {found['trainable']:,} of {found['parameters']:,} are trained "
        f"({100 * trained:.2g} %)",
        f"memory:      {size(found['peak_memory_bytes'])} at its peak, on the longest rows",
        f"disk:        {size(found['disk_bytes'])} ({size(found['stage_bytes'])} a stage), "
        f"{size(found['disk_free_bytes'])} free",
        f"time:        about {span(found['seconds'])} for {found['steps']:,} steps and the scoring",
        "nothing was written; leave out --dry-run to do it",
    ]
    yield Text("\n".join(lines))


def planned_cells(found: dict[str, Any]) -> Iterator[RenderableType]:
    """A table of a comparison's lines, each with what one of its cells costs, and the whole."""
    right = ("cells", "trials", "to run", "steps", "a cell", "trained")
    table = grid("method", *right, right=right)
    for line in found["lines"]:
        counts = (line[key] for key in ("cells", "trials", "to_run", "steps"))
        table.add_row(
            Text(line["name"]),
            *(f"{count:,}" for count in counts),
            span(line["seconds"]),
            f"{line['trainable']:,}",
        )
    yield table
    yield Text(
        f"device:      {found['device']}, {counted(found['threads'], 'thread')} a cell\n"
        f"memory:      {size(found['peak_memory_bytes'])} at its peak, for one cell\n"
        f"disk:        {size(found['disk_bytes'])}, {size(found['disk_free_bytes'])} free\n"
        f"time:        about {span(found['seconds'])} for {counted(found['to_run'], 'cell')}, "
        f"{found['jobs']} at a time\n"
        "nothing was written; leave out --dry-run to do it"
    )


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
