"""`perdure statistics`: measure a checkpoint on rows, for `perdure merge`."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, counted, print_json, quiet, stderr_line, stdout


@command(api.statistics, rows="ROWS", out="FOLDER")
def statistics(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure statistics sft reviews.jsonl sft-fisher --rule fisher"""
    quiet()
    result = api.statistics(**arguments, say=stderr_line)
    if as_json:
        print_json(result)
        return
    stdout().print(
        f"{result['statistics']}: {result['kind']} of {counted(result['tensors'], 'tensor')} on "
        f"{counted(result['rows'], 'row')}; give it to perdure merge with --statistics"
    )
