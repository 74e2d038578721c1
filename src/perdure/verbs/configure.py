"""`set` changes the settings of a lineage, from its next stage on."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from perdure.config import Config, load_config, read_settings
from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import BASE, FREE, as_typed, command, differences, stored
from perdure.models.pins import check_pin
from perdure.prepare import check_general, prepare
from perdure.verbs.init import try_base


ELSEWHERE = {
    "base": "a lineage keeps its base; if it has moved, give its new place with `perdure rebase`, "
    "and for another model make a new lineage",
    "revision": "a lineage keeps its base at this revision; for another one make a new lineage",
    "lineage": "is the folder, which is given first",
    "data": "is given with each command, as --data FOLDER",
}


def configure(
    path: str | Path, config: Config | str | Path | dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Change settings and return the new ledger line, or None if nothing changes.

    See `perdure.api.configure`.
    """
    if not config and not settings:
        raise PerdureError("set: nothing to set; write KEY=VALUE, such as memory.ratio=0.05")
    for key in settings:
        if (name := key.partition(".")[0]) in ELSEWHERE:
            raise PerdureError(f"{key}: {ELSEWHERE[name]}")
    with locked(Lineage(path, edited=True).path):
        lineage = Lineage(path, edited=True)
        new_config = _changed(lineage, config, settings)
        check_pin(lineage.pin)
        try:
            plan = prepare(new_config)
        except PerdureError as error:  # what cannot change at all is told before what does not fit
            _check_fixed(lineage, stored(new_config, lineage.path), only=settings)
            raise PerdureError(_without_fixed_advice(lineage, str(error))) from None
        new = stored(plan.config, lineage.path)
        changes = differences(lineage.settings, new)
        if any(key.partition(".")[0] == "merge" for key in changes):
            raise PerdureError(
                "merge: is that of `perdure run`, which merges its stages; leave it out"
            )
        _check_fixed(lineage, new)
        _check_edits(lineage, new, settings)
        check_general(plan)
        if any(key.partition(".")[0] in ("adapter", "quantization", "seed") for key in changes):
            try_base(plan)
        if not changes:
            lineage.tidy()
            return None
        lineage.append(
            {
                "stage": lineage.head,
                "verb": "set",
                "parent": lineage.head,
                "changed": {key: list(values) for key, values in changes.items()},
                "settings": new,
            }
        )
        return lineage.ledger[-1]


def _without_fixed_advice(lineage: Lineage, line: str) -> str:
    """Return an error line that does not advise to set what can no longer change."""
    problem, advice, setting = line.partition("; set ")
    key = setting.partition("=")[0]
    reasons = lineage.why_fixed({key: (None, None)}, lineage.settings) if advice else {}
    if key not in reasons:
        return line
    return f"{problem}; {key} cannot change any more, because {reasons[key]}; make a new lineage"


def _check_fixed(
    lineage: Lineage, new: dict[str, Any], only: Collection[str] | None = None
) -> None:
    """Check that the settings that change may still change; `only` those keys, if it is given.

    Raises:
        PerdureError: one may not; the line names it with the reason.
    """
    changes = {
        key: values
        for key, values in differences(lineage.settings, new).items()
        if only is None or key in only or key.partition(".")[0] in only
    }
    if fixed := lineage.why_fixed(changes, new):
        key, reason = next(iter(fixed.items()))
        raise PerdureError(
            f"{key}: cannot change in {lineage.path} any more, because {reason}; make a new lineage"
        )


def _changed(
    lineage: Lineage, config: Config | str | Path | dict[str, Any], settings: dict[str, Any]
) -> Config:
    """Return the lineage's settings with the changes, or those of `config` with the changes.

    Raises:
        PerdureError: a setting is wrong, or the base is not that of the lineage.
    """
    place = {"base": lineage.pin["name"], "revision": lineage.pin.get("revision")}
    if not config:
        current = lineage.config.to_dict()
        for key in FREE:
            current.pop(key)
        return _with_threads(load_config(current, settings), lineage)
    values = read_settings(config.to_dict() if isinstance(config, Config) else config, settings)
    for key in BASE:
        if values.get(key) not in (None, place[key]):
            raise PerdureError(
                f"{key}: {values[key]!r} is not that of {lineage.path}; {ELSEWHERE[key]}"
            )
    kept = {key: value for key, value in values.items() if key not in FREE}
    return _with_threads(load_config({**kept, **place}), lineage)


def _with_threads(config: Config, lineage: Lineage) -> Config:
    """Give settings without a number of threads that of the lineage."""
    config.threads = config.threads or lineage.config.threads
    return config


def _check_edits(lineage: Lineage, new: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that no edit of `lineage.yaml` would be lost that is not set as well.

    Raises:
        PerdureError: an edited key is not among the settings.
    """
    edits = differences(lineage.settings, lineage.written)
    pending = lineage.written == lineage.settings_at(len(lineage.ledger) - 1)
    lost = {
        key: values
        for key, values in edits.items()
        if not pending and key not in settings and key.partition(".")[0] not in settings
    }
    if lost:
        words = command(lineage.path, as_typed(new, lineage.path), lost)
        raise PerdureError(
            f"{lineage.path / 'lineage.yaml'}: was edited, and {next(iter(lost))} is not among the "
            f"settings to set; set it too, or first type `{words}`, "
            "which restores the file"
        )
