"""The numbers of the report as Markdown, and as CSV with one number per line."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from perdure.reporting.groups import MEASURES, Set, sets
from perdure.reporting.page import number, seconds, signed
from perdure.reporting.read import Run
from perdure.reporting.spread import Spread


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
CSV_HEADER = ",".join(COLUMNS)
COSTS = ("training s", "rows forward", "rows back", "rows kept", "peak MiB")
PASSED = ("rows_forward", "rows_back")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # the beginnings of a spreadsheet's formulas
MEANING = {
    "overall": "the mean score of all tasks after the last stage",
    "backward_transfer": "how much tasks gained since learning; below 0 they were forgotten",
    "forward_transfer": "how much a task gained before it was learned",
    "forgetting": "how far the scores of tasks fell from their best",
    "learning_accuracy": "the mean score right after learning",
}


def markdown(runs: Sequence[Run]) -> str:
    """Return the verdicts, and for each set its summary, its costs and its score matrices."""
    parts = ["<!-- perdure report -->", "# Perdure report"]
    run_sets = sets(runs)
    judged = [run for run in runs if run.stages]
    parts += ["## Verdict", *(part for run in judged for part in _verdicts(run))] if judged else []
    for i, run_set in enumerate(run_sets, 1):
        parts += [f"## Part {i}"] if len(run_sets) > 1 else []
        parts += _part(run_set)
    for run in runs:
        if not run.stages:
            parts += [f"{_cell(run.label)}: nothing learned yet.", *_refused(run)]
    meanings = "; ".join(f"{MEASURES[name]}: {meaning}" for name, meaning in MEANING.items())
    parts.append(
        f"{meanings}; -: unknown. ±: the standard deviation over a method's lineages. In brackets: "
        "the 95 % interval over orders, after averaging the seeds of each order; with fewer than "
        "three orders there is none, and the numbers hold only for these orders."
    )
    return "\n\n".join(parts) + "\n"


def _verdicts(run: Run) -> list[str]:
    """Return the verdict on a lineage, and a table of what became of each task at each stage."""
    parts = [f"{_cell(run.label)}: **{_cell(run.headline)}**"]
    rows = [["stage", "task", "verdict", "before", "after", "difference", "why"]]
    for verdict in run.verdicts:
        for outcome in verdict.outcomes:
            numbers = [number(outcome.before), number(outcome.after), signed(outcome.difference)]
            name = f"{verdict.stage} {verdict.task}"
            rows.append([name, outcome.task, outcome.label, *numbers, outcome.evidence])
    parts += [_table(rows)] if run.verdicts else []
    return [*parts, *_refused(run)]


def _refused(run: Run) -> list[str]:
    """Return a table of the stages that the gate refused."""
    rows = [[str(line.stage), line.task or "", "; ".join(line.reasons)] for line in run.refused]
    return [_table([["after stage", "refused task", "why"], *rows])] if rows else []


def _part(run_set: Set) -> list[str]:
    head = f"Base {_cell(run_set.base)}; scored by {run_set.mode} ({_cell(run_set.metric)}); "
    head += f"{len(run_set.runs)} lineage(s), {len(run_set.orders)} order(s), "
    head += f"seeds {run_set.seeds}."
    summary = [["method", "old tasks lost", "lineages", *MEASURES.values()]]
    costs = [["lineage", "method", "seed", "OP", *COSTS]]
    for method in run_set.methods:
        spreads = [_spread(method.numbers[name]) for name in MEASURES]
        counts = [method.lost_words, str(len(method.runs))]
        summary.append([method.label, *counts, *spreads])
        for run in method.runs:
            counts = (*(run.passed or (None, None)), run.remembered, run.peak_mib)
            plain = ["-" if count is None else f"{count:.0f}" for count in counts]
            numbers = [number(run.numbers["overall"]), seconds(run.seconds), *plain]
            costs.append([run.label, method.label, str(run.seed), *numbers])
    matrices = [
        text
        for run in run_set.runs
        for text in (f"### {_cell(run.label)}", _matrix(run), *_interference(run))
    ]
    return [head, _table(summary), _table(costs), *matrices]


def _interference(run: Run) -> list[str]:
    """Return a table of the interference of the checkpoints that were merged, if there is any."""
    if not run.interference:
        return []
    rows = [["merged", "cosine with what was merged before", "opposite sign, by magnitude"]]
    for found in run.interference:
        rows.append([f"{found.stage} {found.task}", f"{found.cosine:.2f}", f"{found.against:.0%}"])
    return [_table(rows)]


def _spread(spread: Spread) -> str:
    if spread.deviation is None:
        return number(spread.mean)
    if spread.low is None:
        return f"{number(spread.mean)} ± {number(spread.deviation)}"
    low, high = number(spread.low), number(spread.high)
    return f"{number(spread.mean)} ± {number(spread.deviation)} [{low}, {high}]"


def _matrix(run: Run) -> str:
    matrix = run.matrix
    rows = [
        [
            matrix.row_name(stage),
            *(
                "~" * ((stage, task) in run.sampled) + number(score)
                for task, score in zip(matrix.tasks, row, strict=True)
            ),
        ]
        for stage, row in enumerate(matrix.rows)
    ]
    return _table([["after stage", *matrix.tasks], *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(words: str) -> str:
    """Escape a text so that it cannot make a cell, tag, link or emphasis."""
    if words == "---":
        return words
    escaped = re.sub(r"([\\`*_\[\]|<>#~!&])", r"\\\1", " ".join(words.split()))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def csv_text(runs: Sequence[Run]) -> str:
    """Return all numbers at full precision; unknown ones are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, run_set in enumerate(sets(runs), 1):
        for row in _rows(run_set):
            value = row[-1]
            writer.writerow([i, *map(_safe, row[:-1]), "" if value is None else repr(value)])
    return out.getvalue()


def _rows(run_set: Set) -> Iterator[tuple]:
    """Yield the lines of a set, without the number of its part (see `COLUMNS`)."""
    for method in run_set.methods:
        for name in (*MEASURES, "seconds"):
            spread = method.seconds if name == "seconds" else method.numbers[name]
            for key in ("mean", "deviation", "low", "high"):
                measure = f"{name}_{key}"
                value = getattr(spread, key)
                yield method.label, "", "", "", run_set.mode, measure, "", "", value
        for run in method.runs:
            order = " ".join(run.matrix.tasks)
            names = (method.label, run.label, order, run.seed)
            costs = {"seconds": run.seconds, "rows_kept": run.remembered, "peak_mib": run.peak_mib}
            if run.verdict.measured:
                costs["tasks_lost"] = len(run.verdict.lost)
            costs |= dict(zip(PASSED, run.passed or (None, None), strict=True))
            for name, value in {**run.numbers, **costs}.items():
                yield *names, run_set.mode, name, "", "", value
            for stage, row in enumerate(run.matrix.rows):
                for task, value in zip(run.matrix.tasks, row, strict=True):
                    mode = run.scoring.get(task, ("",))[0]
                    measure = "score_estimated" if (stage, task) in run.sampled else "score"
                    yield *names, mode, measure, run.matrix.number(stage), task, value


def _safe(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would read as a formula."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value
