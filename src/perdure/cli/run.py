"""`perdure run`: learn the stream of tasks in a YAML."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.dry_run import planned
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    grid,
    print_json,
    print_parts,
    quiet,
    score,
    stderr_line,
    verdict_text,
)
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import to_dict
from perdure.measure.show import table as matrix_table
from perdure.processes import is_main
from perdure.reporting import results as report


@command(api.run, config="FILE.yaml")
def run(
    arguments: Arguments,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Add the run's record to this result file."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Report what it would do and cost, without writing anything."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Example: perdure run examples/quickstart.yaml method=recurrent_kif"""
    file, settings = arguments["config"], arguments.get("settings", [])
    config = api.run_config(file, arguments.get("data"), settings)
    records = report.load(results) if results else []
    quiet()
    if dry_run:
        plan = api.dry_run(config, say=stderr_line)
        if as_json:
            print_json(plan)
        else:
            print_parts(planned(plan))
        return
    from perdure.cli.progress import Shown

    with Shown() as shown:
        lineage = api.run(config, callbacks=[shown], say=shown.say)
    new = report.record(lineage, shlex.join(["perdure", "run", str(file), *settings]))
    if results and is_main():
        records = report.merge(records, new)
        commands = " && ".join(dict.fromkeys(r["command"] for r in records if "command" in r))
        report.write(
            results,
            benchmark=file.stem,
            command=commands,
            device=report.device(lineage.config.threads),
            records=records,
        )
    if as_json:
        print_json(_answer(lineage, new))
    else:
        print_parts(_report(lineage, new, records or [new], results))


def _answer(lineage: Lineage, new: dict[str, Any]) -> dict[str, Any]:
    keys = ("method", "overall", "backward_transfer", "forward_transfer", "lineage")
    verdicts = [lineage.verdict(entry) for entry in lineage.stages]
    return {
        **{key: new[key] for key in keys},
        "matrix": to_dict(lineage.matrix()),
        "verdicts": verdicts,
    }


def _report(
    lineage: Lineage, new: dict[str, Any], records: list[dict[str, Any]], results: Path | None
) -> list[RenderableType]:
    cells = lineage.scores(lineage.stages[-1])["after"].values()
    mode, metric = (
        ", ".join(sorted({cell[key] for cell in cells if key in cell}))
        for key in ("mode", "metric")
    )
    verdicts = [verdict_text(lineage.verdict(e), e["stage"], lineage.path) for e in lineage.stages]
    parts = [
        *verdicts,
        matrix_table(
            lineage.matrix(),
            mode,
            metric,
            title=new["method"],
            sampled=lineage.sampled_cells(),
        ),
        summary(records),
    ]
    lines = [
        "OP: the mean score after the last stage. BWT: what tasks have gained since they",
        "were learned (below 0: forgotten). FWT: what a task gains before it is learned.",
        "",
        *([f"results:      {results}"] if results else []),
        f"lineage:      {lineage.path}",
        f"its history:  perdure log {lineage.path}",
        "your own:     perdure init my-model --base FOLDER_OR_NAME",
        "              perdure learn my-model my-task train.jsonl --test test.jsonl",
    ]
    return [*parts, Text("\n".join(lines))]


def summary(records: list[dict[str, Any]]) -> RenderableType:
    """All records in one table; order and seed have columns only if they differ.

    The lineage has one if records differ in nothing else, as those of a method with other keywords.
    """
    varied = [key for key in ("order", "seed") if len({str(r[key]) for r in records}) > 1]
    if len({tuple(str(r[key]) for key in report.KEY) for r in records}) < len(records):
        varied.append("lineage")
    right = ["OP", "BWT", "FWT", "seconds"]
    table = grid("method", *varied, *right, right=right)
    for record in records:
        table.add_row(
            record["method"],
            *(str(record.get(key, "-")) for key in varied),
            score(record["overall"]),
            score(record["backward_transfer"], sign=True),
            score(record.get("forward_transfer"), sign=True),
            f"{record['seconds']:.1f}",
        )
    return table
