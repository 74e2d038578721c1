"""`run`: a stream of tasks, a stage each."""

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from engram.config import Config, deciding, telling
from engram.data.stream import load_stream
from engram.errors import EngramError
from engram.lineage.files import locked
from engram.lineage.lineage import Lineage
from engram.models.pins import pin
from engram.train.stage import Say
from engram.train.tracking import Tracked
from engram.verbs.advance import advance
from engram.verbs.checks import check_settings, check_tasks, settle
from engram.verbs.init import init


def run(
    config: Config,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = lambda line: None,
) -> Lineage:
    """Learn a stream: `init`, then a stage for each task; finished stages are kept.

    Raises:
        EngramError: as `init` and `learn`, or other settings than those the lineage was made with.
    """
    if not config.lineage:
        raise EngramError("lineage: missing; say where the run goes, such as lineage=runs/first")
    check_settings(config)
    settle(config)
    tasks = load_stream(config)
    path = Path(config.lineage)
    if (path / "engram.yaml").exists():
        lineage = Lineage(path)
        config.threads = config.threads or lineage.config.threads
        config.revision = config.revision or lineage.config.revision
        lineage.check_unchanged(config, pin(config.base, config.revision))
        lines = check_tasks(config, tasks[len(lineage.stages) :])
    else:
        Lineage.check_vacant(path)
        lines = check_tasks(config, tasks)
        init(path, config)
    with locked(path), Tracked(config.training, path) as tracked:
        callbacks = [tracked, *callbacks]
        lineage = Lineage(path)
        lineage.tidy()
        lineage.config.training = deciding(lineage.config.training) | telling(config.training)
        done = lineage.stages
        for entry, task in zip(done, tasks, strict=False):
            if entry["task"]["train"]["sha256"] != task.train.sha256:
                raise EngramError(
                    f"{path}: stage {entry['stage']} learned other rows of {task.name!r} than "
                    "these; take the rows back or give a new folder with lineage=FOLDER"
                )
        for line in lines:
            say(line)
        known = {entry["task"]["id"]: task for entry, task in zip(done, tasks, strict=False)}
        for i in range(len(done), len(tasks)):
            learned = tasks[: i + 1] if config.mode == "joint" else [tasks[i]]
            old = config.scoring.old == "each" or i + 1 == len(tasks)
            entry = advance(lineage, learned, known, config.data, callbacks, say, old, len(tasks))
            known[entry["task"]["id"]] = tasks[i]
    return lineage
