"""`adopt` makes a stage of a checkpoint that was trained elsewhere."""

from pathlib import Path
from typing import Any

from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.models.as_is import base_of_adapter
from perdure.models.checkpoints import check_fit, hashes, weight_files
from perdure.models.pins import differing, pin
from perdure.prepare import prepare_adopt
from perdure.say import Say
from perdure.verbs.advance import advance
from perdure.verbs.init import check_tokenizer


def adopt(
    path: str | Path, checkpoint: str | Path, task: Task, data: str | Path | None, say: Say
) -> dict[str, Any]:
    """Record a checkpoint as the next stage and return its ledger line. See `perdure.api.adopt`."""
    folder, planned = Path(checkpoint), Lineage(path)
    whole = planned.config.adapter is None
    weight_files(folder, whole)  # first, because it is the likeliest mistake
    plan = prepare_adopt(planned, task)
    if not whole:
        _check_base(planned, folder)
    with locked(planned.path):
        lineage = Lineage(path)
        if lineage.settings != planned.settings:
            raise PerdureError(f"{path}: its settings have just changed; repeat the command")
        lineage.tidy()
        last = lineage.stages[-1] if lineage.stages else {}
        if last.get("checkpoint") == hashes(folder, whole) and last["task"]["name"] == task.name:
            say(f"{task.name}: already adopted, as stage {lineage.head}")
            return last
        base = plan.loader.at(lineage, last or None)
        check_fit(base, folder)
        check_tokenizer(folder, base.tokenizer)
        for line in plan.notes:
            say(line)
        return advance(lineage, plan, [task], data=data, callbacks=(), say=say, checkpoint=folder)


def _check_base(lineage: Lineage, folder: Path) -> None:
    """Check that an adapter was trained on the lineage's base.

    Raises:
        PerdureError: it names a base with other weights, or one that is not here to compare.
    """
    name, revision = base_of_adapter(str(folder))
    ours = lineage.pin["name"]
    if name == ours:
        return
    try:
        other = pin(name, revision)
    except PerdureError as error:
        raise PerdureError(
            f"{folder}: was trained on base {name!r}, which is not here to compare with {ours!r}, "
            f"that of {lineage.path}; if they are the same, write {ours!r} as its "
            "base_model_name_or_path in adapter_config.json"
        ) from error
    changed = [file for file in differing(lineage.pin, other) if file.endswith(".safetensors")]
    if changed:
        raise PerdureError(
            f"{folder}: was trained on another base, {name!r}: its {changed[0]} differs from that "
            f"of {ours!r}, the base of {lineage.path}"
        )
