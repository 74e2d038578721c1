"""`check` measures what a model has lost of another's general ability."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perdure.config import GuardSettings, LmEvalSettings
from perdure.data.unwritten import unwritten_roles
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, is_untouched, stage_entry, stage_folder
from perdure.measure.guard.guard import guard, has_template
from perdure.measure.guard.lm_eval_result import compare_tasks
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.guard.loss import with_lm_eval
from perdure.measure.guard.rows import read_guard_rows, sampled
from perdure.measure.guard.subject import Subject
from perdure.measure.guard.words import words
from perdure.models.adapter_disabled import base_is_kept
from perdure.models.as_is import base_of_adapter, is_adapter, load_as_is
from perdure.models.base import Base, read_base
from perdure.models.pins import check_pin
from perdure.say import Say
from perdure.verbs.asking import as_scored


def check(
    model: str | Path,
    against: str | Path | int | None,
    stage: int | None,
    rows: str | Path | Sequence[Mapping[str, Any]] | None,
    limit: int | None,
    system: str | None,
    max_new_tokens: int | None,
    lm_eval: str | Sequence[str] | None,
    lm_eval_path: str | Path | None,
    lm_eval_limit: int | None,
    say: Say,
) -> dict[str, Any]:
    """Return the result of the guard. See `perdure.api.check`."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise PerdureError(f"an answer has at least 1 token, not {max_new_tokens}")
    name = str(model)
    lineage = Lineage(name) if (Path(name) / "lineage.yaml").is_file() else None
    settings = (lineage and lineage.config.guard) or GuardSettings()
    guard_rows = sampled(
        read_guard_rows(settings.rows if rows is None else rows),
        settings.limit if limit is None else limit,
    )
    task_settings = _task_settings(settings, lm_eval, lm_eval_path, lm_eval_limit)
    tasks = LmEvalTasks(task_settings) if task_settings else None
    if lineage:
        reference, subject = _stages(lineage, stage, against)
    elif stage is not None:
        raise PerdureError(f"{name}: --stage is for a lineage, and there is no lineage.yaml in it")
    else:
        reference, subject = _models(name, None if against is None else str(against), say)
    _share_template(reference, subject, say)
    system = settings.system if system is None else system
    if has_template(reference):
        asked_rows = [row.as_chat(system) for row in guard_rows]
        for line in unwritten_roles(asked_rows, reference.base.tokenizer, "the rows"):
            say(line)
    if tasks:
        tasks.try_on(reference.base)
    result = guard(
        reference,
        subject,
        guard_rows,
        system=system,
        max_new_tokens=max_new_tokens or settings.max_new_tokens,
    )
    if tasks is None:
        return result
    before, now = (tasks.ask(asked).values for asked in (reference, subject))
    result = with_lm_eval(result, compare_tasks(tasks.metrics, before, now))
    return {**result, "verdict": words(result)}


def _task_settings(
    settings: GuardSettings,
    names: str | Sequence[str] | None,
    folder: str | Path | None,
    limit: int | None,
) -> LmEvalSettings | None:
    """Return the settings of lm-eval's tasks: those of the lineage, overridden by the arguments.

    Raises:
        PerdureError: there are no tasks, but something else is given, or the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise PerdureError(f"a limit of documents must be at least 1, got {limit}")
    own = settings.lm_eval
    if names is None and own is None:
        if folder is not None or limit is not None:
            raise PerdureError("no tasks of lm-eval are given; name them with --lm-eval TASK,...")
        return None
    texts = [names] if isinstance(names, str) else names
    tasks = [name.strip() for text in texts or () for name in text.split(",")]
    return replace(
        own or LmEvalSettings(),
        **({"tasks": tasks} if tasks else {}),
        **({"include_path": str(folder)} if folder is not None else {}),
        **({"limit": limit} if limit is not None else {}),
    )


def _models(name: str, against: str | None, say: Say) -> tuple[Subject, Subject]:
    """Return a model and the one to compare it with; an adapter's is its base by default."""
    folder = str(stage_folder(name))
    base_name = base_of_adapter(folder)[0] if is_adapter(folder) else None
    if base_name is None and Path(name).is_dir() and not (Path(folder) / "config.json").is_file():
        raise PerdureError(
            f"{name}: no model is there (no config.json or adapter_config.json); give the folder "
            "of a model, of an adapter or of a lineage"
        )
    if against is None and base_name is None:
        if not Path(name).is_dir():
            raise PerdureError(
                f"{name}: no such folder; for a model of the hub, give the one from which it was "
                "trained, as --against BASE"
            )
        raise PerdureError(
            f"{name}: give the model to compare it with, the one from which it was trained, as "
            "--against BASE"
        )
    base = load_as_is(folder, say)
    subject = Subject(name, base)
    if against in (None, base_name):
        assert base_name is not None
        if base_is_kept(base.peft):  # one network is both: with its adapter, and without
            return Subject(f"the base {base_name}", base, base.peft.disable_adapter), subject
        revision = base_of_adapter(folder)[1]
        untouched = load_as_is(base_name, say, revision=revision)
        return Subject(f"the base {base_name}", untouched), subject
    assert against is not None
    return Subject(against, load_as_is(str(stage_folder(against)), say)), subject


def _stages(
    lineage: Lineage, stage: int | None, against: str | Path | int | None
) -> tuple[Subject, Subject]:
    """Return a stage of a lineage and the stage, or the model, to compare it with."""
    config, entry = lineage.config, stage_entry(lineage, stage)
    other = 0 if against is None else against
    is_stage = isinstance(other, int) or str(other).isdigit()
    number = lineage.head if stage is None else stage
    if is_stage and int(str(other)) == number:
        raise PerdureError(
            f"{lineage.path}: stage {number} would be compared with itself; learn a task first, or "
            "give another stage with --stage or --against"
        )
    reference_entry = stage_entry(lineage, int(str(other))) if is_stage else None
    check_pin(lineage.pin)
    if read_base(config.base, lineage.pin.get("revision")).kind == "encoder":
        raise PerdureError(
            f"{lineage.path}: its base is an encoder, which cannot generate, so general ability "
            "cannot be checked; `perdure evaluate` scores its tasks"
        )
    torch.set_num_threads(config.threads or torch.get_num_threads())
    subject = _of_stage(lineage, entry, base_at(lineage, entry))
    if not is_stage:
        return Subject(str(other), load_as_is(str(stage_folder(str(other))))), subject
    if is_untouched(lineage, reference_entry, subject.base):
        # The stage's own network without its adapter is the base.
        return _of_stage(lineage, reference_entry, subject.base), subject
    return _of_stage(lineage, reference_entry, base_at(lineage, reference_entry)), subject


def _of_stage(lineage: Lineage, entry: dict[str, Any] | None, base: Base) -> Subject:
    """Return a stage as a model to measure."""
    name = f"stage {entry['stage']}" if entry else "the base"
    return Subject(name, base, lambda: as_scored(lineage, entry, base))


def _share_template(reference: Subject, subject: Subject, say: Say) -> None:
    """Ask a model that was saved without its chat template in the reference's.

    Raises:
        PerdureError: its vocabulary is not the reference's.
    """
    if not has_template(reference) or subject.base.tokenizer.chat_template:
        return
    tokenizer = reference.base.tokenizer
    if tokenizer.get_vocab() != subject.base.tokenizer.get_vocab():
        raise PerdureError(
            f"{subject.name}: it has no chat template, and its vocabulary is not that of "
            f"{reference.name}; save the tokenizer that it was trained with in its folder"
        )
    say(f"note: {subject.name} has no chat template and is asked in that of {reference.name}")
    subject.base = replace(subject.base, tokenizer=tokenizer, cache=None)
