"""`show` returns everything that a lineage records about a stage."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from perdure.config import DEFAULT_TRAINING, filled_adapter
from perdure.errors import PerdureError, one_line
from perdure.lineage.files import line_count
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import differences, stored
from perdure.models.layout import ADAPTER_WEIGHTS, MEMORY, METHOD_STATE
from perdure.say import Say
from perdure.train.dev_settings import for_task
from perdure.verbs.verdict import changed_rows


def show(
    path: str | Path, stage: int | None, flips: bool, data: str | Path | None, say: Say
) -> dict[str, Any]:
    """Return the ledger's line of a stage with its settings, costs and state.

    See `perdure.api.show`.
    """
    lineage = Lineage(path)
    number = lineage.head if stage is None else stage
    if number == 0:
        entry = lineage.ledger[0]
    else:
        entry = lineage.at(number)
    config, timing = lineage.config_at(entry), lineage.timings().get(str(number), {})
    line = [0, *(e["stage"] for e in lineage.line(number))]
    details = {
        **{k: v for k, v in entry.items() if k not in ("previous", "base")},
        "lineage": str(path),
        "active": number in {0, *(e["stage"] for e in lineage.stages)},
        "newest": number == lineage.head,
        "line_of": line,
        "base": {k: v for k, v in lineage.pin.items() if k != "files"},
        "date": timing.get("date"),
        "seconds": timing.get("seconds"),
        "steps": timing.get("steps"),
        "rehearsed": timing.get("rehearsed"),
        "dev": lineage.scores(entry).get("dev") if number else None,
        "verdict": lineage.verdict(entry) if number else None,
        "sampled": lineage.sampled(entry),
        "weights_kept": not lineage.is_gone(entry),
        "weights_dropped_by": lineage.dropped_by(entry),
        "within": _within(lineage, entry),
    }
    if number == 0:
        return details
    memory = lineage.file(entry, MEMORY)
    remembered_rows = line_count(memory) if memory else 0
    own = entry["task"].get("training", {})
    settings = {
        "training": {**DEFAULT_TRAINING, **for_task(config.training, own)},
        "adapter": filled_adapter(config.adapter),
        "quantization": config.quantization,
        "seed": config.seed,
        "threads": config.threads,
    }
    parent = lineage.stage_entries[entry["parent"]]
    changes = differences(
        stored(lineage.config_at(parent), lineage.path), stored(config, lineage.path)
    )
    listed = {"flips": changed_rows(lineage, entry, data, say)} if flips else {}
    details["changed"] = {key: list(values) for key, values in changes.items()}
    details["state"] = _numbers(lineage, entry)
    return {**details, "settings": settings, "remembered_rows": remembered_rows, **listed}


def _within(lineage: Lineage, entry: dict[str, Any]) -> int | None:
    """Return the number of the stage whose adapter contains that of this one, if only it does."""
    folder = entry.get("folder", "")
    if folder not in lineage.contained or (lineage.folder(entry) / ADAPTER_WEIGHTS).exists():
        return None
    return lineage.number_of(lineage.contained[folder][0])


def _numbers(lineage: Lineage, entry: dict[str, Any]) -> dict[str, float]:
    """Return the single numbers that methods keep after a task, such as a share that was chosen.

    Raises:
        PerdureError: the file of their state does not load.
    """
    dropped = METHOD_STATE in lineage.dropped_files(entry)
    file = None if dropped else lineage.file(entry, METHOD_STATE)
    if file is None:
        return {}
    try:
        with safe_open(file, framework="np") as state:
            names = [name for name in state.keys() if state.get_slice(name).get_shape() == []]  # noqa: SIM118
            return {name: round(state.get_tensor(name).item(), 6) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        raise PerdureError(f"{file}: damaged ({one_line(error)}); restore it from a copy") from None
