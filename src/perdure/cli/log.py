"""`perdure log`: show the history of a lineage."""

from textwrap import shorten

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, score, stdout
from perdure.lineage.history import COMPACT
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import in_words


LONGEST = 60  # characters of a method with its keywords; `show` has all of them


@command(api.log)
def log(arguments: Arguments, as_json: Json = False) -> None:
    """Reverted and refused stages are in brackets. `~` is a score of a sample of the test rows.

    Example: perdure log my-model
    """
    lines, folder = api.log(**arguments), arguments["folder"]
    if as_json:
        print_json(lines)
        return
    stdout().print(f"{folder}: base {Lineage(folder).pin['name']}")
    columns = ("stage", "verb", "task", "method", "scores or settings", "seconds", "date")
    table = grid(*columns, right=["seconds"])
    for line in lines[1:]:
        scores = ", ".join(
            f"{name} {'~' * (name in line['sampled'])}{score(value)}"
            for name, value in line["scores"].items()
        )
        if line["changed"]:
            scores = in_words(line["changed"])
        if line["lost"]:
            scores += f"; lost: {', '.join(line['lost'])}"
        if line["reasons"]:
            scores += f"; refused: {'; '.join(line['reasons'])}"
        if line["verb"] == COMPACT:
            scores = f"dropped the weights of stage {', '.join(map(str, line['dropped']))}"
        if line["restored"]:
            scores = f"stage {', '.join(map(str, line['restored']))} has its weights again"
        seconds = "-" if line["seconds"] is None else f"{line['seconds']:.1f}"
        method = shorten(line["method_in_words"] or "-", LONGEST, placeholder=" ...")
        cells = (line["task"], method, scores, seconds, line["date"])
        stage = f"{line['stage']}" if line["active"] else f"({line['stage']})"
        verb = line["verb"] if line["undone"] is None else f"undo {line['undone']}"
        table.add_row(stage, verb, *(Text(str(cell or "-")) for cell in cells))
    stdout().print(table if lines[1:] else f"no stage yet: perdure learn {folder} NAME train.jsonl")
