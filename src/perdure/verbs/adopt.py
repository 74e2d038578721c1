"""`adopt` makes a stage of a checkpoint that was trained elsewhere."""

from pathlib import Path
from typing import Any

from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import stage_folder
from perdure.models.checkpoints import check_base_of, check_fit, hashes, weight_files
from perdure.prepare import prepare_adopt
from perdure.say import Say
from perdure.verbs.advance import Adopted, AdoptedWeights, advance
from perdure.verbs.init import check_tokenizer
from perdure.verbs.inputs import check_same_rows


def adopt(
    path: str | Path, checkpoint: str | Path, task: Task, data: str | Path | None, say: Say
) -> dict[str, Any]:
    """Record a checkpoint as the next stage and return its ledger line. See `perdure.api.adopt`."""
    folder, planned = stage_folder(checkpoint), Lineage(path)
    whole = planned.config.adapter is None
    weight_files(folder, whole)  # first, because it is the likeliest mistake
    plan = prepare_adopt(planned, task)
    if not whole:
        check_base_of(folder, planned.pin, str(planned.path))
    with locked(planned.path):
        lineage = Lineage(path)
        if lineage.settings != planned.settings:
            raise PerdureError(f"{path}: its settings have just changed; repeat the command")
        lineage.tidy()
        last = lineage.stages[-1] if lineage.stages else {}
        same = last.get("checkpoint") == hashes(folder, whole) and last["verb"] == "adopt"
        if same and last["task"]["name"] == task.name:
            check_same_rows(lineage, last, task, "adopt")
            say(f"{task.name}: already adopted, as stage {lineage.head}")
            return last
        base = plan.loader.at(lineage, last or None)
        check_fit(base, folder)
        check_tokenizer(folder, base.tokenizer)
        for line in plan.notes:
            say(line)
        files = hashes(folder, whole)
        adopted = Adopted(
            line={"verb": "adopt", "method": "adopted", "checkpoint": files},
            weights=lambda base, work: AdoptedWeights(folder),
        )
        return advance(lineage, plan, [task], data=data, callbacks=(), say=say, adopted=adopted)
