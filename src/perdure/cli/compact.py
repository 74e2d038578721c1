"""`perdure compact`: delete weights that can be learned again."""

from typing import Any

from perdure import api
from perdure.cli.dry_run import size
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, complain, print_json, quiet, stdout


@command(api.compact, stages="[STAGE]...")
def compact(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure compact my-model --dry-run"""
    quiet()
    result = api.compact(**arguments)
    if as_json:
        print_json(result)
        return
    for line in _lines(result):
        stdout().print(line, markup=False)
    for note in result["notes"]:
        complain(f"warning: {note}")


def _lines(result: dict[str, Any]) -> list[str]:
    """The lines about each stage, and what was saved."""
    folder, dropped, is_dry = result["lineage"], result["dropped"], result["dry_run"]
    done = "would be dropped" if is_dry else "dropped"
    lines = [f"{_stage(stage)}: {size(stage['bytes'])} {done}{_how(stage)}" for stage in dropped]
    lines += [f"{_stage(stage)}: kept: {stage['reason']}" for stage in result["kept"]]
    if not dropped:
        return [*lines, f"{folder}: nothing to drop"]
    saved = f"{folder}: {size(result['bytes'])} {'would be saved' if is_dry else 'saved'}"
    if is_dry:
        return [*lines, f"{saved}; nothing was deleted"]
    if any(stage["reason"] is None for stage in dropped):
        saved += f"; `perdure repair {folder} --stage N` learns a dropped stage again"
    return [*lines, saved]


def _how(stage: dict[str, Any]) -> str:
    return ", for good" if stage["reason"] else ""


def _stage(stage: dict[str, Any]) -> str:
    return f"stage {stage['stage']} ({stage['task']})"
