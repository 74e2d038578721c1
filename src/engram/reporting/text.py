"""The numbers of the page as Markdown for people, and as CSV, one number a line, for programs."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from engram.reporting.groups import MEASURES, Set, sets
from engram.reporting.page import number, seconds
from engram.reporting.read import Run
from engram.reporting.spread import Spread


COLUMNS = (
    "part",
    "method",
    "lineage",
    "order",
    "seed",
    "mode",
    "measure",
    "stage",
    "task",
    "value",
)
HEAD = ",".join(COLUMNS)
COSTS = ("training s", "rows forward", "rows back", "rows kept", "peak MiB")
PASSED = ("rows_forward", "rows_back")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet would calculate
MEANING = {
    "overall": "the mean score of all tasks after the last stage",
    "backward_transfer": "what tasks gained since they were learned; below 0 they were forgotten",
    "forward_transfer": "what a task gained before it was learned",
    "forgetting": "how far tasks fell from their best",
    "learning_accuracy": "the mean score right after learning",
}


def markdown(runs: Sequence[Run]) -> str:
    """A summary and a cost table a part, a score matrix a lineage."""
    parts = ["<!-- engram report -->", "# Engram report"]
    found = sets(runs)
    for i, one in enumerate(found, 1):
        parts += [f"## Part {i}"] if len(found) > 1 else []
        parts += _part(one)
    for run in runs:
        if not run.stages:
            parts.append(f"{_cell(run.label)}: nothing learned yet.")
    told = "; ".join(f"{MEASURES[name]}: {meaning}" for name, meaning in MEANING.items())
    parts.append(
        f"{told}; -: unknown. ±: the standard deviation over a method's lineages. In brackets: the "
        "95 % interval over orders, the seeds of an order averaged; with fewer than three orders "
        "there is none, and the numbers hold on these orders."
    )
    return "\n\n".join(parts) + "\n"


def _part(one: Set) -> list[str]:
    head = f"Base {_cell(one.base)}; scored by {one.mode} ({_cell(one.metric)}); "
    head += f"{len(one.runs)} lineage(s), {len(one.orders)} order(s), seeds {one.seeds}."
    summary = [["method", "lineages", *MEASURES.values()]]
    costs = [["lineage", "method", "seed", "OP", *COSTS]]
    for method in one.methods:
        spreads = [_spread(method.numbers[name]) for name in MEASURES]
        summary.append([method.label, str(len(method.runs)), *spreads])
        for run in method.runs:
            counts = (*(run.passed or (None, None)), run.remembered, run.peak_mib)
            plain = ["-" if count is None else f"{count:.0f}" for count in counts]
            numbers = [number(run.numbers["overall"]), seconds(run.seconds), *plain]
            costs.append([run.label, method.label, str(run.seed), *numbers])
    matrices = [text for run in one.runs for text in (f"### {_cell(run.label)}", _matrix(run))]
    return [head, _table(summary), _table(costs), *matrices]


def _spread(found: Spread) -> str:
    if found.deviation is None:
        return number(found.mean)
    if found.low is None:
        return f"{number(found.mean)} ± {number(found.deviation)}"
    low, high = number(found.low), number(found.high)
    return f"{number(found.mean)} ± {number(found.deviation)} [{low}, {high}]"


def _matrix(run: Run) -> str:
    m = run.matrix
    names = ["base", *(f"{i} {task}" for i, task in enumerate(m.tasks, 1))]
    rows = [[name, *map(number, row)] for name, row in zip(names, m.rows, strict=True)]
    return _table([["after stage", *m.tasks], *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(words: str) -> str:
    """Text stays text: no cell, tag, link or emphasis of its own."""
    if words == "---":
        return words
    escaped = re.sub(r"([\\`*_\[\]|<>#~!&])", r"\\\1", " ".join(words.split()))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def csv_text(runs: Sequence[Run]) -> str:
    """All numbers at full precision; an unknown one is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, one in enumerate(sets(runs), 1):
        for row in _rows(one):
            value = row[-1]
            writer.writerow([i, *map(_safe, row[:-1]), "" if value is None else repr(value)])
    return out.getvalue()


def _rows(one: Set) -> Iterator[tuple]:
    for method in one.methods:
        for name in (*MEASURES, "seconds"):
            found = method.seconds if name == "seconds" else method.numbers[name]
            for key in ("mean", "deviation", "low", "high"):
                measure = f"{name}_{key}"
                value = getattr(found, key)
                yield method.label, "", "", "", one.mode, measure, "", "", value
        for run in method.runs:
            order = " ".join(run.matrix.tasks)
            known = (method.label, run.label, order, run.seed)
            more = {"seconds": run.seconds, "rows_kept": run.remembered, "peak_mib": run.peak_mib}
            more |= dict(zip(PASSED, run.passed or (None, None), strict=True))
            for name, value in {**run.numbers, **more}.items():
                yield *known, one.mode, name, "", "", value
            for stage, row in enumerate(run.matrix.rows):
                for task, value in zip(run.matrix.tasks, row, strict=True):
                    mode = run.scoring.get(task, ("",))[0]
                    yield *known, mode, "score", stage, task, value


def _safe(value: object) -> object:
    """Text that a spreadsheet would take for a formula is quoted by an apostrophe."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value
