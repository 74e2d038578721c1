"""The settings of a run: a dataclass that is read from YAML and `key=value` overrides."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from perdure.calls import plain, short
from perdure.errors import PerdureError, nearest
from perdure.parsing import LARGEST_YAML, CheckedLoader, UnreadableError, parse_yaml, read_whole


Mode = Literal["sequential", "joint", "union", "per_task"]
TOGETHER = ("joint", "union")  # the modes that learn several tasks at once
ScoringMode = Literal["generate", "options"]
Codec = Literal["sparse", "lowrank", "raw"]  # how a packed checkpoint is stored
PresetName = Literal["reinstruct"]  # the recipes of merging
Vocabulary = Literal["same", "base", "union"]  # what merging does with other vocabularies
Dtype = Literal["float32", "bfloat16", "float16"]  # the data types of an exported model

DEFAULT_ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
DEFAULT_TRAINING = {"learning_rate": 3e-4, "num_train_epochs": 3, "per_device_train_batch_size": 8}
GROUPED = "group_by_length"  # the `train_sampling_strategy` with little padding
PADDING_FREE = "padding_free"  # the key of `training:` for none at all; it has TRL's name


def filled_adapter(adapter: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the adapter's settings, with Perdure's defaults for a LoRA filled in."""
    if adapter is None or str(adapter.get("peft_type", "LORA")).upper() != "LORA":
        return adapter
    return {**DEFAULT_ADAPTER, **adapter}


# Prefixes of the keys of `training:` that configure logging and trackers. They have no effect on
# the bytes of a stage.
LOGGING = ("report_to", "run_name", "project", "logging_")


def logging_keys(training: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `training:` that may differ between runs of one lineage."""
    return {key: value for key, value in training.items() if key.startswith(LOGGING)}


def deciding_keys(training: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `training:` that decide the bytes of a lineage."""
    return {key: value for key, value in training.items() if not key.startswith(LOGGING)}


@dataclass
class Memory:
    """Which rows of a learned task are kept for rehearsal.

    Args:
        ratio: the share of the task's train rows that is kept.
        choose: which rows are kept: `balanced` over the answers, or `surprise`, the rows with the
            highest mean negative log-likelihood of their answer's tokens before the task is learned
            (SuRe, 2511.22367).
        per_answer: the fewest rows that are kept of each answer, even if `ratio` is exceeded. This
            holds for closed answers: declared `options`, or at most 50 distinct answers in at least
            five times as many rows. With 0, only the ratio decides.
    """

    ratio: float = 0.02
    choose: Literal["balanced", "surprise"] = "balanced"
    per_answer: int = 1


@dataclass
class General:
    """Rows of general use as a second memory, for old data that is not available any more.

    Args:
        file: where the rows are, as for a task.
        ratio: how many of these rows a stage draws for each row that it learns.
    """

    file: Any = None
    ratio: float = 0.1


@dataclass
class Scoring:
    """How tasks are scored.

    Args:
        mode: how the model answers. Null means `options` for encoders and `generate` for others.
        batch_size: rows per batch.
        forward: whether each task is also scored on the base and just before it is learned, as the
            forward transfer requires.
        old: when a run scores the tasks before the new one: after `each` stage, or only after the
            `last`, for long streams. OP and BWT are the same, but forgetting is unknown.
        sample: the most test rows on which the tasks before the new one are scored together, evenly
            divided over them. Null means all of their rows. The last stage of a run, and
            `evaluate`, always ask all rows.
    """

    mode: ScoringMode | None = None
    batch_size: int = 32
    forward: bool = True
    old: Literal["each", "last"] = "each"
    sample: int | None = None


@dataclass
class LmEvalSettings:
    """Tasks of lm-eval that the guard runs beside its own rows; the keys have lm-eval's names.

    Args:
        tasks: the names of tasks, groups or tags, or the YAML files of tasks.
        include_path: a folder with YAML files of your own tasks.
        limit: the most documents of each task. Null means all.
        num_fewshot: how many examples stand before each document. Null means the task's own number.
        apply_chat_template: whether a document is asked in the chat template of the base.
    """

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False


@dataclass
class GuardSettings:
    """How general ability is measured after each stage of a generative base.

    `guard: null` switches it off.

    Args:
        rows: a file with your own rows and checks in place of the bundled ones.
        share: the most that the guard may take of the time in which a stage learns. It decides how
            many rows are asked, from the tokens that the stage has learned and not from a clock.
        limit: how many rows are asked, whatever they take. Null means what `share` allows.
        system: a system prompt before each row.
        max_new_tokens: the most tokens of an answer.
        lm_eval: tasks of lm-eval that are run as well.
    """

    rows: str | None = None
    share: float = 0.2
    limit: int | None = None
    system: str | None = None
    max_new_tokens: int = 48
    lm_eval: LmEvalSettings | None = None


@dataclass
class Gate:
    """What a stage may lose at most. A stage beyond it is refused; null means no limit.

    Args:
        forgetting: the fall of an old task's score.
        general: the share lost net of the guard's checks that the base passes, and the share by
            which the mean of each of lm-eval's tasks is worse than the base's.
        kl: the mean KL from the base, in nats per token.
    """

    forgetting: float | None = None
    general: float | None = None
    kl: float | None = None


@dataclass
class Config:
    """All settings that decide the bytes of a lineage.

    `training`, `adapter` and `quantization` are passed unchanged to `TrainingArguments`, PEFT and
    `BitsAndBytesConfig`, on top of Perdure's defaults. If `adapter` is null, all weights are
    trained. `revision` is that of the base on the hub. `max_length` 0 means 512, or the base's
    number of positions if that is smaller. With `mask_history`, only the last of the assistant's
    turns is learned, as in LLaMA-Factory; otherwise all turns are. `merge` is the rule by which the
    stages of mode `per_task` are merged (`perdure.prepare.merged`).
    """

    base: str = "default"
    revision: str | None = None
    method: Any = "sequential"
    mode: Mode = "sequential"
    merge: Any = None
    tasks: str | list[dict[str, Any]] | None = None
    rows: dict[str, int] = field(default_factory=dict)
    data: str | None = None
    instruction: bool = True
    adapter: dict[str, Any] | None = field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    general: General = field(default_factory=General)
    scoring: Scoring = field(default_factory=Scoring)
    guard: GuardSettings | None = field(default_factory=GuardSettings)
    gate: Gate = field(default_factory=Gate)
    max_length: int = 0
    max_completion_length: int = 128
    mask_history: bool = False
    checkpoint_every: int = 500
    seed: int = 0
    threads: int | None = None
    lineage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested dicts, as they are written in YAML.

        `merge` is left out if it is not set, as in the settings of earlier releases.
        """
        settings = dataclasses.asdict(self)
        if self.merge is None:
            del settings["merge"]
        return settings


class _Loader(CheckedLoader):
    """Reads 1e-4 as a number, which YAML 1.1 reads as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(
    source: str | Path | dict[str, Any],
    over: list[str] | dict[str, Any] | None = None,
    where: str = "the settings",
) -> Config:
    """Load a Config from a YAML file or a dict.

    Args:
        source: the file or the dict.
        over: overrides, as `key=value` texts or as a dict. A dot in a key reaches into a mapping:
            `training.learning_rate=1e-4`.
        where: where a dict comes from, with which an error line begins.

    Raises:
        PerdureError: the file is missing or not valid YAML, a key is unknown, or a value has the
            wrong type.
    """
    where = where if isinstance(source, dict) else str(source)
    return _build(Config, read_settings(source, over), where, "")


def read_settings(
    source: str | Path | dict[str, Any], over: list[str] | dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read the keys and values of `load_config` without checking them."""
    if not isinstance(source, Mapping | str | Path):
        raise PerdureError(
            f"settings are a mapping or the path of a YAML, not {type(source).__name__}"
        )
    values = plain(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    for key, value in (over if isinstance(over, dict) else overrides(over)).items():
        _set(values, key, plain(value))
    return values


def overrides(texts: list[str] | None) -> dict[str, Any]:
    """Parse `key=value` texts to a dict, reading the values as YAML."""
    return dict(_parse(text) for text in texts or [])


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PerdureError(f"{path}: no such file; give the path of a YAML with the run's settings")
    try:
        values = parse_yaml(read_whole(path, LARGEST_YAML), _Loader)
    except UnreadableError as error:
        raise PerdureError(f"{path}: {error}; fix that line") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else _in_words(type(values))
        raise PerdureError(f"{path}: expected `key: value` lines, got {got}")
    return values


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise PerdureError(f"{override!r}: an override is written key=value, e.g. method=replay")
    try:
        return key, parse_yaml(text, _Loader)
    except UnreadableError as error:
        raise PerdureError(f"{override!r}: the value is not valid YAML; quote it") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        if isinstance(inner, list):
            raise PerdureError(f"{key}: {part} is a list; give all of it as {part}=[...]")
        values[part] = dict(inner) if isinstance(inner, dict) else {}
        values = values[part]
    values[last] = value


def _build(cls: type, values: dict[str, Any], where: str, section: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise PerdureError(f"{where}: {unknown_key(key, value, section, fields)}")
    built = {}
    for key, value in values.items():
        kind: Any = fields[key].type
        section_class = section_of(kind)
        if section_class and type(None) in get_args(kind) and (value is None or value is False):
            built[key] = None  # switched off
        elif section_class:
            if not isinstance(value, dict):
                raise PerdureError(f"{where}: {key} takes a mapping, got {short(value)}")
            built[key] = _build(section_class, value, f"{where}: {key}", key)
        else:
            built[key] = checked(key, value, kind, where)
    return cls(**built)


def section_of(kind: Any) -> Any:
    """Return the class of a section's keys if the type of a setting has one, else None."""
    return next((option for option in get_args(kind) or (kind,) if is_dataclass(option)), None)


def unknown_key(key: Any, value: Any, section: str, valid: Iterable[str]) -> str:
    """Return the error line for a key that a section does not have, with where it belongs.

    `section` is "" for the top. In an unknown mapping such as `trainer: {learning_rate: 1}`, the
    key inside it decides where it belongs.
    """
    from perdure.places import where_it_goes  # imports modules that import this one

    first, dot, rest = str(key).partition(".")
    if dot and not section and first in valid:
        return f"unknown key {key!r}; write it as a mapping, {first}: {{{rest}: ...}}"
    if isinstance(value, dict) and value and not section:
        inner = next(iter(value))
        return f"unknown key '{key}.{inner}'; {where_it_goes(str(inner), str(key), valid)}"
    return f"unknown key {key!r}; {where_it_goes(str(key), section, valid)}"


LARGEST = 2**64


def check_finite(key: str, value: Any, where: str) -> None:
    """Check that all numbers in a value are finite, including those in lists and mappings.

    Raises:
        PerdureError: one is not, or is a whole number of more than 64 bits; the line has its key.
    """
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise PerdureError(f"{where}: {key} is a whole number of more than 64 bits; give a smaller")
    if isinstance(value, float) and not math.isfinite(value):
        raise PerdureError(f"{where}: {key} must be a finite number, got {value}")
    items = enumerate(value) if isinstance(value, list | tuple) else ()
    for inner, part in value.items() if isinstance(value, dict) else items:
        check_finite(f"{key}.{inner}", part, where)


def checked(key: str, value: Any, kind: Any, where: str) -> Any:
    """Return `value` if it has the type `kind`: a Literal, a plain type, or a union of these.

    Raises:
        PerdureError: it has another type, or is not a choice of the Literal.
    """
    check_finite(key, value, where)
    if kind is Any:
        return value
    options = get_args(kind) if type(None) in get_args(kind) or not get_args(kind) else (kind,)
    for option in options or (kind,):
        literal = get_args(option)
        if getattr(option, "__origin__", None) is Literal:
            if value in literal:
                return value
        elif option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        elif isinstance(value, getattr(option, "__origin__", option)) and not (
            isinstance(value, bool) and option is not bool
        ):
            return value
    names = [str(a) for o in options or (kind,) for a in get_args(o) if isinstance(a, str)]
    if isinstance(value, str) and names:
        raise PerdureError(f"{where}: {key}: {value!r} is not a choice; {nearest(value, names)}")
    wanted = " or ".join(_in_words(option) for option in options or (kind,))
    raise PerdureError(f"{where}: {key} takes {wanted}, got {short(value)}")


def _in_words(kind: Any) -> str:
    """Return a type as users of a YAML know it."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words |= {dict: "a mapping", list: "a list", type(None): "null"}
    origin = getattr(kind, "__origin__", kind)
    if origin is Literal:
        return " or ".join(map(str, get_args(kind)))
    return words.get(origin) or getattr(kind, "__name__", str(kind))
