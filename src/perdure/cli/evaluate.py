"""`perdure evaluate`: score a stage again."""

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, quiet, score, stderr_line, stdout


@command(api.evaluate, predictions="--predictions FILE.jsonl")
def evaluate(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure evaluate my-model --stage 1 --task reviews"""
    quiet()
    cells = api.evaluate(**arguments, say=stderr_line)
    if as_json:
        print_json(cells)
        return
    table = grid("task", "score", "metric", "mode", "rows", "truncated", right=["score", "rows"])
    for name, cell in cells.items():
        details = (str(cell.get(key, "-")) for key in ("metric", "mode", "rows", "truncated"))
        table.add_row(Text(name), score(cell["score"]), *details)
    stdout().print(table)
