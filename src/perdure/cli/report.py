"""`perdure report`: write a page about lineages."""

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, score, stdout
from perdure.measure.matrix import to_dict
from perdure.reporting.groups import MEASURES, sets
from perdure.reporting.read import Run


@command(api.report, folders="FOLDER...", out="--out FILE.html")
def report(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure report quickstart --out report.html"""
    runs, files = api.report(**arguments)
    if as_json:
        print_json({"files": list(map(str, files)), "lineages": list(map(_numbers, runs))})
        return
    table = grid("method", "lineages", *MEASURES.values(), right=["lineages", *MEASURES.values()])
    for run_set in sets(runs):
        for method in run_set.methods:
            cells = [
                score(method.numbers[name].mean, sign=name.endswith("transfer"))
                for name in MEASURES
            ]
            table.add_row(Text(method.label), str(len(method.runs)), *cells)
        table.add_row(Text(f"scored by {run_set.mode}"), end_section=True)
    stdout().print(table)
    stdout().print(f"the page:         {files[0]}")
    stdout().print(f"the same numbers: {files[1]}, {files[2]}")


def _numbers(run: Run) -> dict:
    about = {"lineage": str(run.path), "method": run.method, "seed": run.seed}
    return about | run.numbers | {"seconds": run.seconds, "matrix": to_dict(run.matrix)}
