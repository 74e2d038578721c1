"""Tasks of lm-eval that models are asked beside the guard's rows: an extra of the package.

lm-eval builds the prompts, asks the models and scores their responses. Perdure pairs the scores of
two models document by document (`lm_eval_result.py`).
"""

import io
import logging
import math
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np

from perdure.config import LmEvalSettings
from perdure.errors import PerdureError, one_line
from perdure.measure.batches import evaluating
from perdure.measure.guard.lm_eval_result import Asked, Metric
from perdure.measure.guard.subject import Subject
from perdure.models.base import Base, BaseInfo
from perdure.parsing import LARGEST_YAML, CheckedLoader, UnreadableError, parse_yaml, read_whole
from perdure.seeds import digest, forked


FEWSHOT_SEED = 1234  # that of lm-eval's own command
MEANS = ("mean", "nanmean")  # lm-eval's names of the aggregations that are means
MAX_GEN_TOKS = 256  # lm-eval's, for a task that has none
SECTION = "guard.lm_eval"


class LmEvalTasks:
    """Tasks of lm-eval, loaded with their documents.

    Args:
        settings: which tasks, and how they are asked.

    Raises:
        PerdureError: lm-eval is not installed, or a task does not exist, cannot be loaded, or
            needs code from the hub.
    """

    def __init__(self, settings: LmEvalSettings):
        _check(settings)
        self.settings = settings
        self.metrics: dict[str, Metric] = {}
        self.documents: dict[str, str] = {}  # a hash of what each task asks and scores
        names = list(dict.fromkeys(settings.tasks))
        with _isolated():
            manager = _manager(settings, names)
            self.tasks: dict[str, Any] = {}
            for name in names:
                self.tasks |= _loaded(manager, name)
        for name, task in self.tasks.items():
            _check_can_run(name, task)

    def try_on(self, base: Base | BaseInfo) -> None:
        """Find the metric of each task, and check that all documents can be asked and scored.

        The model itself is not used.

        Raises:
            PerdureError: they cannot; the line names the task.
        """
        from perdure.measure.guard.lm_eval_model import TrialModel

        if self.settings.apply_chat_template and not base.tokenizer.chat_template:
            raise PerdureError(
                f"{SECTION}.apply_chat_template: {base.name} has no chat template; leave it out"
            )
        for name, task in self.tasks.items():
            trial = TrialModel(base.tokenizer)
            samples = self._samples({name: task}, trial)[name]
            self.metrics[name] = _metric(name, task, samples[0])
            hashes = ("doc_hash", "prompt_hash", "target_hash")
            asked = [[sample[key] for key in hashes] for sample in samples]
            self.documents[name] = digest(asked, asdict(self.metrics[name]))
            _check_room(name, trial.requests, base)

    def ask(self, subject: Subject, known: Mapping[str, Any] | None = None) -> Asked:
        """Ask a model all documents; `try_on` must have been called.

        Args:
            subject: the model.
            known: responses of the same model that are known, by the keys of the requests.
        """
        from perdure.measure.guard.lm_eval_model import AskedModel

        with ExitStack() as stack:
            stack.enter_context(subject.context())
            stack.enter_context(evaluating(subject.base.model))
            model = AskedModel(subject, known)
            samples = self._samples(self.tasks, model)
        values = {
            name: self._values(self.tasks[name], samples[name], metric)
            for name, metric in self.metrics.items()
        }
        return Asked(model.responses, values)

    def _values(
        self, task: Any, samples: Sequence[Mapping[str, Any]], metric: Metric
    ) -> dict[str, float | None]:
        """Return the values of a metric by document, None where it is not a finite number.

        The keys do not depend on the model, also where its chat template is in the prompt.
        """
        from perdure.measure.guard.lm_eval_model import numbered

        samples = [sample for sample in samples if sample["filter"] == metric.filter]
        asked = (metric.name, task.get_config("num_fewshot"), self.settings.apply_chat_template)
        keys = numbered(
            [
                digest(task.doc_to_text(s["doc"]), s["target_hash"], s["doc_hash"], asked)
                for s in samples
            ]
        )
        numbers = [_number(sample[metric.name]) for sample in samples]
        return dict(zip(keys, numbers, strict=True))

    def _samples(self, tasks: dict[str, Any], model: Any) -> dict[str, list[dict[str, Any]]]:
        """Return what lm-eval notes of each document, for each task."""
        from lm_eval.evaluator import evaluate

        settings = self.settings
        for task in tasks.values():
            # As `lm_eval.simple_evaluate`: a task with 0 examples is never given any.
            number = task.get_config("num_fewshot")
            if number is None or (number != 0 and settings.num_fewshot is not None):
                task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        try:
            with _isolated():
                results: Any = evaluate(
                    lm=model,
                    task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
                    limit=settings.limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=settings.apply_chat_template,
                    fewshot_as_multiturn=True,
                )
        except PerdureError:
            raise
        except Exception as error:  # the code of a task may raise anything
            names = ", ".join(tasks)
            raise PerdureError(
                f"{SECTION}: lm-eval cannot run {names}: {type(error).__name__}: {one_line(error)}"
            ) from error
        return results["samples"]


def check_installed() -> None:
    """Raise PerdureError if lm-eval is not installed; the line says how to install it."""
    if find_spec("lm_eval") is None:
        raise PerdureError(
            f"{SECTION}: lm-eval is not installed; type `pip install 'perdure[lm-eval]'`, or leave "
            "it out"
        )


def _check(settings: LmEvalSettings) -> None:
    """Check the settings, and that lm-eval is there."""
    tasks, folder = settings.tasks, settings.include_path
    if not tasks or not all(isinstance(task, str) and task.strip() for task in tasks):
        raise PerdureError(f"{SECTION}.tasks: give a list of lm-eval's tasks, got {tasks!r}")
    if folder is not None and not Path(folder).is_dir():
        raise PerdureError(
            f"{SECTION}.include_path: {folder}: no such folder; give the folder with the YAML "
            "files of your tasks"
        )
    check_installed()


def _manager(settings: LmEvalSettings, names: list[str]) -> Any:
    """Return lm-eval's index of tasks, without its own tasks if all names are local ones.

    Raises:
        PerdureError: a file is not valid YAML, or there is no such task; the line has the nearest
            name.
    """
    from lm_eval.tasks import TaskManager

    folder = settings.include_path
    in_folder = tuple(sorted(map(str, Path(folder).rglob("*.yaml")))) if folder else ()
    files = [name for name in names if name.endswith(".yaml")]
    for file in (*in_folder, *files):
        _check_yaml(file)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if set(names) <= {*files, *manager.all_tasks}:
        return manager
    manager = _with_lm_evals_own(folder, in_folder)
    for name in names:
        if name not in files and name not in manager.all_tasks:
            close = get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`lm_eval ls tasks` lists them"
            raise PerdureError(f"{SECTION}.tasks: lm-eval has no task {name!r}; {hint}")
    return manager


@cache
def _with_lm_evals_own(folder: str | None, in_folder: tuple[str, ...]) -> Any:
    """Return the index of all tasks, of which reading lm-eval's own takes many seconds.

    `in_folder` are the files of the folder, so that a new one is found.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


class _AnyTags(CheckedLoader):
    """Reads tags such as `!function`, which name code, as null."""


_AnyTags.add_multi_constructor("!", lambda loader, suffix, node: None)


def _check_yaml(file: str) -> None:
    """Check the syntax of a file, because lm-eval leaves out what it cannot read."""
    if not Path(file).is_file():
        raise PerdureError(f"{SECTION}.tasks: {file}: no such file; give the YAML of a task")
    try:
        parse_yaml(read_whole(Path(file), LARGEST_YAML), _AnyTags)
    except UnreadableError as error:
        raise PerdureError(f"{file}: {error}; fix that line") from error


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    """Return the tasks of a name by their own names; those of a group or tag are several."""
    try:
        with _isolated():
            return manager.load([name])["tasks"]
    except Exception as error:  # the code of a task, and what reads its documents, raise anything
        raise PerdureError(
            f"{SECTION}.tasks: {name} cannot be loaded: {type(error).__name__}: {one_line(error)}; "
            "fix the task, or make its documents available (paths in it are relative to the "
            "working directory)"
        ) from error


def _check_can_run(name: str, task: Any) -> None:
    """Check that a task neither runs code that the model writes nor needs images or sound."""
    if getattr(task, "UNSAFE_CODE", False):
        raise PerdureError(
            f"{SECTION}.tasks: {name} runs code that the model has written; leave it out"
        )
    if getattr(task, "MULTIMODAL", False):
        raise PerdureError(
            f"{SECTION}.tasks: {name} has images or sound, and the base reads text; leave it out"
        )


def _metric(name: str, task: Any, sample: Mapping[str, Any]) -> Metric:
    """Return the first metric of a task that is the mean of one number for each document.

    Raises:
        PerdureError: it has none.
    """
    for metric in sample["metrics"]:
        aggregation = task.aggregation().get(metric)
        is_mean = getattr(aggregation, "__name__", "mean") in MEANS
        if is_mean and _number(sample[metric]) is not None:
            higher_is_better = task.higher_is_better().get(metric)
            return Metric(metric, sample["filter"], higher_is_better is not False)
    raise PerdureError(
        f"{SECTION}.tasks: no metric of {name} is the mean of a number for each document, so two "
        f"models cannot be compared by it (its metrics: {', '.join(sample['metrics'])}); leave it "
        "out"
    )


def _check_room(name: str, requests: Sequence[Any], base: Base | BaseInfo) -> None:
    """Check that the answers of a task leave room for a prompt in the positions of a base."""
    from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

    config = base.config if isinstance(base, BaseInfo) else base.network.config
    positions = base.limits.positions or resolve_max_length(config, base.tokenizer)
    for request in requests:
        if base.kind != "causal" or request.request_type != "generate_until":
            continue
        tokens = normalize_gen_kwargs(request.args[1], MAX_GEN_TOKS).get("max_gen_toks", 0)
        if tokens >= positions:
            raise PerdureError(
                f"{SECTION}.tasks: {name} asks for answers of up to {tokens} tokens, which leave "
                f"no room for a prompt in the {positions} positions of {base.name}; set a smaller "
                "max_gen_toks in its generation_kwargs"
            )


def _number(value: Any) -> float | None:
    """Return a value of a metric as a number, None if it is none or not finite."""
    is_number = isinstance(value, int | float | np.number | np.bool_)
    return float(value) if is_number and math.isfinite(value) else None


class _HubCodeError(BaseException):
    """Raised where lm-eval would run code from the hub; it catches every `Exception` there."""


@contextmanager
def _isolated() -> Iterator[None]:
    """Run lm-eval without its output, without code from the hub, and with random streams apart.

    Raises:
        PerdureError: a task needs the code of a metric from the hub.
    """
    random_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with forked(0), _silent(), _without_hub_code():
            yield
    except _HubCodeError as error:
        raise PerdureError(
            f"{SECTION}.tasks: the metric {error} is code on the hub, which is never run; use a "
            "task with a metric of lm-eval itself"
        ) from error
    finally:
        random.setstate(random_state)
        np.random.set_state(numpy_state)


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what lm-eval prints, its progress bars, its warnings and those of others to it."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_hub_code() -> Iterator[None]:
    """Refuse `evaluate.load`, which downloads the code of a metric and runs it.

    The library is only imported by tasks with such a metric. If it is not imported yet, they get an
    empty module in its place.
    """

    def refuse(path: str, *_: Any, **__: Any) -> Any:
        raise _HubCodeError(path)

    imported = sys.modules.get("evaluate")
    module: Any = imported or module_from_spec(ModuleSpec("evaluate", loader=None))
    load = getattr(module, "load", None)
    module.load = refuse
    sys.modules["evaluate"] = module
    try:
        yield
    finally:
        if imported:
            module.load = load
        else:
            del sys.modules["evaluate"]
