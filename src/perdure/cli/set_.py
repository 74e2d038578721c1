"""`perdure set`: change settings of a lineage."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stdout
from perdure.config import load_config, overrides
from perdure.lineage.settings import in_words


@command(api.configure, config="--config FILE.yaml")
def set_(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure set my-model method=replay training.learning_rate=1e-4"""
    texts = arguments.pop("settings", None)
    load_config({}, texts)  # so that an unknown key is refused, and no parameter of the verb
    quiet()
    entry = api.configure(**arguments, **overrides(texts))
    if as_json:
        print_json(entry)
        return
    folder = arguments["folder"]
    if entry is None:
        stdout().print(f"{folder}: has these settings already")
        return
    stdout().print(f"{folder}: from the next stage on: {in_words(entry['changed'])}")
