"""`perdure init`: create a lineage."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stdout
from perdure.config import load_config


@command(api.init, config="--config FILE.yaml", from_adapter="--adapter FOLDER")
def init(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure init my-model --base Qwen/Qwen3-0.6B method=recurrent_kif"""
    settings = arguments.pop("settings", None)
    config = load_config(arguments.pop("config", {}), settings)
    quiet()
    folder = arguments["folder"]
    lineage = api.init(**arguments, config=config)
    if as_json:
        print_json({"lineage": str(folder), "base": lineage.pin})
        return
    stdout().print(
        f"{folder}: made on base {lineage.pin['name']}; next, teach it a task:\n"
        f"  perdure learn {folder} NAME train.jsonl --test test.jsonl"
    )
