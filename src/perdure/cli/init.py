"""`perdure init`: create a lineage."""

from typing import Any

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, quiet, stderr_line, stdout
from perdure.config import read_settings
from perdure.lineage.settings import text
from perdure.reporting.results import method_in_words


SHOWN = (
    *("method", "adapter", "training", "memory", "general", "guard", "gate"),
    *("max_length", "max_completion_length", "seed", "threads"),
)
CHEAPER = "about 0.6 of the time (docs/choosing.md)"  # smollm2_assistant_confirm.json


@command(api.init, config="--config FILE.yaml", from_adapter="--adapter FOLDER")
def init(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure init my-model --base Qwen/Qwen3-0.6B"""
    settings = arguments.pop("settings", None)
    config = read_settings(arguments.pop("config", {}), settings)
    quiet()
    folder = arguments["folder"]
    lineage = api.init(**arguments, config=config, say=stderr_line)
    if as_json:
        print_json({"lineage": str(folder), "base": lineage.pin, "settings": lineage.settings})
        return
    stdout().print(f"{folder}: made on base {lineage.pin['name']}, with these settings:")
    table = grid("", "")
    table.show_header = False
    for key in SHOWN:
        value = lineage.settings[key]
        words = method_in_words(value) if key == "method" else _in_words(value)
        if key == "general" and value["file"] is None:
            words = "none"
        table.add_row(f"  {key}", Text(words))
    stdout().print(table)
    stdout().print("\n".join(_notes(str(folder), lineage.settings)))


def _notes(folder: str, settings: dict[str, Any]) -> list[str]:
    """Return what to know of the settings, and what to type next."""
    from perdure.prepare.defaults import METHOD

    notes = []
    if settings["memory"]["ratio"]:
        percent = 100 * settings["memory"]["ratio"]
        notes.append(f"stored:       {percent:g} % of the rows of each task, in the folder")
    if settings["method"] == METHOD:
        notes.append(f"cheaper:      perdure set {folder} 'method=[replay,kl_base]', {CHEAPER}")
    lower_rate = settings["training"]["learning_rate"] / 2
    return [
        *notes,
        f"change one:   perdure set {folder} training.learning_rate={lower_rate:g}",
        f"next:         perdure learn {folder} NAME train.jsonl --test test.jsonl",
    ]


def _in_words(value: Any) -> str:
    """Return a setting in one line; keys that are null are left out."""
    if isinstance(value, dict):
        parts = [f"{key} {text(part)}" for key, part in value.items() if part is not None]
        return ", ".join(parts) or "none"
    return "none" if value is None else text(value)
