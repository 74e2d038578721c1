"""The output of a dry run: a table of the tasks, and the totals below it."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perdure.cli.output import counted, grid
from perdure.config import GROUPED
from perdure.reporting.results import method_in_words


COLUMNS = ("rows", "tokens", "longest", "truncated", "padding", "steps", "learning", "scoring")

MUCH_PADDING = 0.3  # from this share on, the setting that saves more than half of it is named


def planned(plan: dict[str, Any]) -> Iterator[RenderableType]:
    """A table of the tasks, and the total cost."""
    if not plan["tasks"]:
        yield Text("every task is learned already; without --dry-run, the results are printed")
        return
    table = grid("task", *COLUMNS, right=COLUMNS)
    seconds = zip(plan["seconds_learning"], plan["seconds_scoring"], strict=True)
    for task, (learning, scoring) in zip(plan["tasks"], seconds, strict=True):
        count = task["count"]
        numbers = (count["rows"], count["tokens"], count["longest"], count["truncated"])
        table.add_row(
            Text(task["task"]),
            *(f"{number:,}" for number in numbers),
            f"{100 * task['padding']:.0f} %",
            f"{task['steps']:,}",
            span(learning),
            span(scoring),
        )
    yield table
    trained_percent = 100 * plan["trainable"] / plan["parameters"]
    lines = [
        f"base:        {plan['base']} ({plan['kind']}), on {plan['device']}, "
        f"{counted(plan['threads'], 'thread')}",
        f"method:      {method_in_words(plan['method'], plan['mode'])}",
        f"parameters:  {plan['trainable']:,} of {plan['parameters']:,} are trained "
        f"({f'{trained_percent:.2g}' if trained_percent < 99 else f'{trained_percent:.0f}'} %)",
        f"memory:      {size(plan['peak_memory_bytes'])} at its peak, on the longest rows",
        f"disk:        {size(plan['disk_bytes'])} ({size(plan['stage_bytes'])} a stage), "
        f"{size(plan['disk_free_bytes'])} free",
        f"time:        about {span(plan['seconds'])} for {plan['steps']:,} steps and the scoring"
        f"{', without the guard' if plan['guarded'] else ''}",
    ]
    most = max(plan["tasks"], key=lambda task: task["padding"] - task["padding_if_grouped"])
    if most["padding"] > MUCH_PADDING and most["padding_if_grouped"] < most["padding"] / 2:
        lines.append(
            f"padding:     training.train_sampling_strategy={GROUPED} would leave "
            f"{100 * most['padding_if_grouped']:.0f} % in {most['task']}"
        )
    lines.append("nothing was written; leave out --dry-run to do it")
    yield Text("\n".join(lines))


def planned_cells(plan: dict[str, Any]) -> Iterator[RenderableType]:
    """A table of a comparison's lines with the cost of one cell each, and the total cost."""
    right = ("cells", "trials", "to run", "steps", "a cell", "trained")
    table = grid("method", *right, right=right)
    for line in plan["lines"]:
        counts = (line[key] for key in ("cells", "trials", "to_run", "steps"))
        table.add_row(
            Text(line["name"]),
            *(f"{count:,}" for count in counts),
            span(line["seconds"]),
            f"{line['trainable']:,}",
        )
    yield table
    if not plan["to_run"]:
        yield Text("every cell is finished; without --dry-run, the results are printed")
        return
    yield Text(
        f"device:      {plan['device']}, {counted(plan['threads'], 'thread')} a cell\n"
        f"memory:      {size(plan['peak_memory_bytes'])} at its peak, for one cell\n"
        f"disk:        {size(plan['disk_bytes'])}, {size(plan['disk_free_bytes'])} free\n"
        f"time:        about {span(plan['seconds'])} for {counted(plan['to_run'], 'cell')}, "
        f"{plan['jobs']} at a time\n"
        "nothing was written; leave out --dry-run to do it"
    )


def span(seconds: float) -> str:
    """A duration as text, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes as text, with a suitable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
