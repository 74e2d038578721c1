"""`init` creates a lineage. Its stage 0 is the untouched base, or the base with an adapter."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedTokenizerBase

from perdure.config import DEFAULT_ADAPTER, Config
from perdure.errors import PerdureError, one_line
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import stage_folder
from perdure.models.as_is import settings_file
from perdure.models.base import load_base, load_tokenizer, read_base
from perdure.models.checkpoints import check_base_of
from perdure.models.finite_weights import check_weights
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from perdure.models.pins import pin
from perdure.models.sample import TEXT
from perdure.models.stage_files import load_weights
from perdure.parsing import read_json
from perdure.prepare import Plan, check_general, prepare
from perdure.prepare.defaults import choose_defaults
from perdure.prepare.settings import check_values
from perdure.say import Say, silent
from perdure.verbs.trial import Trial, check_start


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")
# Keys of an adapter's config that record how it was made. They are not settings of the adapter.
HISTORY = (
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type"),
    "peft_version",
)


def init(
    path: str | Path,
    config: Config,
    adapter: str | Path | None,
    chosen: Mapping[str, Any] | None = None,
    say: Say = silent,
) -> Lineage:
    """Create a lineage on an untouched base, or on a base with the PEFT adapter `adapter`.

    Args:
        path: the folder.
        config: the settings.
        adapter: the folder of a PEFT adapter with which the lineage begins.
        chosen: the settings that the user gave, if the others are to be chosen for a language
            model (`choose_defaults`).
        say: called with each warning about the base.

    Raises:
        PerdureError: the folder is not empty, the base or the adapter does not exist, the adapter
            belongs to another base, a setting is wrong, or the adapter would fail later (`Trial`).
    """
    if config.merge is not None:
        raise PerdureError(
            "merge: is of `perdure run`; leave it out, and merge with `perdure merge`"
        )
    Lineage.check_vacant(path)
    if config.lineage is not None and Path(config.lineage) != Path(path):
        say(f"warning: lineage: {config.lineage} is not used; init makes {path}")
    if config.tasks:
        say("note: init learns none of tasks:; `perdure run` with the same settings does")
    if adapter:
        adapter = stage_folder(adapter)
        config.adapter = adapter_settings(adapter, config)
        if config.base == Config.base:
            written = _read(adapter)
            config.base = written.get("base_model_name_or_path") or config.base
            config.revision = config.revision or written.get("revision")
    info = None
    if chosen is not None:
        check_values(config)
        info = read_base(config.base, config.revision)
        choose_defaults(config, chosen, info)
    plan = prepare(config, info)
    check_general(plan)
    return begin(path, plan, adapter, say)


def begin(
    path: str | Path, plan: Plan, adapter: str | Path | None = None, say: Say = silent
) -> Lineage:
    """Create the lineage of a plan after a trial of its adapter.

    Raises:
        PerdureError: as for `init`.
    """
    config, files = plan.config, None
    config.threads = config.threads or torch.get_num_threads()
    try_base(plan, adapter, say)
    pinned = pin(config.base, config.revision)
    if config.revision and "revision" not in pinned:
        say(
            f"warning: revision: {config.revision} is not used; {config.base} is no name on the "
            "hub, and its files are pinned by their hashes"
        )
    if adapter:
        folder = Path(adapter)
        trained_on = _read(folder).get("base_model_name_or_path")
        if trained_on and Path(trained_on).is_dir():  # of a name on the hub, the base may be a copy
            check_base_of(folder, pinned, whose=pinned["name"])
        files = {name: (folder / name).read_bytes() for name in (ADAPTER_WEIGHTS, ADAPTER_SETTINGS)}
    config.revision = pinned.get("revision")
    return Lineage.create(path, config, pinned, files)


def try_base(plan: Plan, adapter: str | Path | None = None, say: Say = silent) -> None:
    """Load the base with a fresh adapter, or with `adapter`, and test the adapter (`Trial`).

    The plan's loader keeps the base for the first stage. The test runs on a copy that shares the
    base's weights. If no such copy is possible, the test changes the base, and the loader loads it
    again.

    Raises:
        PerdureError: the weights do not load or do not fit, or the adapter would fail later.
    """
    config = plan.config
    torch.set_num_threads(config.threads or torch.get_num_threads())
    check_start(config.adapter or {})
    trial = Trial(config.adapter or {})
    base = load_base(
        config.base,
        config.adapter,
        config.seed,
        quantization=config.quantization,
        revision=config.revision,
        see=trial.see,
        info=plan.info,
        say=say,
    )
    if not adapter:
        plan.loader.keep(base, config.adapter)
    check_weights(base.model, f"base {config.base!r}")
    base.padding  # noqa: B018  # runs a short text, so that a base that cannot run fails here
    if adapter:
        check_tokenizer(Path(adapter), base.tokenizer)
        load_weights(base, Path(adapter), head=False)
        check_weights(base.model, str(adapter))
    if config.adapter is not None:
        trial.check(base)
        if trial.used_up:
            plan.loader.base = None


def adapter_settings(folder: Path, config: Config) -> dict[str, Any]:
    """Return an adapter's settings for the key `adapter:` of a lineage, without PEFT's defaults.

    Raises:
        PerdureError: the folder has no adapter, or only a pickled one, or the lineage's settings
            have an `adapter:` as well.
    """
    if config.adapter != {}:
        set_keys = "adapter=null" if config.adapter is None else ", ".join(config.adapter)
        raise PerdureError(f"adapter: {folder} brings its own settings; leave out {set_keys}")
    written = _read(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        raise PerdureError(
            f"{folder}: no {ADAPTER_WEIGHTS} in it"
            + (
                "; a pickled adapter cannot be loaded, save the adapter again with safetensors"
                if pickled
                else "; give the folder that PEFT's save_pretrained wrote"
            )
        )
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[written["peft_type"]]
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(kind)
    }
    if written.get("init_lora_weights") == "eva":
        # EVA only initialises the factors, and they are loaded from the adapter's file.
        written = {k: v for k, v in written.items() if k not in ("init_lora_weights", "eva_config")}
    return {
        key: value
        for key, value in written.items()
        if key in defaults
        and key not in HISTORY
        and (key in DEFAULT_ADAPTER or value not in (defaults[key], None))
    }


def check_tokenizer(
    folder: Path, base_tokenizer: PreTrainedTokenizerBase, otherwise: str | None = None
) -> None:
    """Check that a tokenizer in an adapter's folder, as TRL saves one, equals the base's.

    A lineage always uses the tokenizer and the chat template of its pinned base.

    Args:
        folder: the adapter's folder.
        base_tokenizer: the tokenizer of the base.
        otherwise: what can be done if they differ, where another base cannot be given.

    Raises:
        PerdureError: the tokenizer differs from the base's, or does not load.
    """
    if not any((folder / name).is_file() for name in TOKENIZER):
        return
    try:
        other = load_tokenizer(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PerdureError(
            f"{folder}: its tokenizer does not load ({one_line(error)}); remove its "
            "tokenizer files if they are the base's"
        ) from error
    same = {
        "chat template": other.chat_template == base_tokenizer.chat_template,
        "vocabulary": other.get_vocab() == base_tokenizer.get_vocab(),
        "end token": other.eos_token_id == base_tokenizer.eos_token_id,
        "tokenization of a text": other(TEXT)["input_ids"] == base_tokenizer(TEXT)["input_ids"],
    }
    differences = [aspect for aspect, is_same in same.items() if not is_same]
    if differences:
        hint = otherwise or (
            "give base=FOLDER, a copy of the base with the adapter's tokenizer files, or remove "
            "these files from the adapter's folder to use the base's"
        )
        raise PerdureError(
            f"{folder}: the adapter was trained with another tokenizer than the base's (its "
            f"{differences[0]} differs); {hint}"
        )


def _read(folder: Path) -> dict[str, Any]:
    file = settings_file(folder)
    try:
        written = read_json(file)
        PeftConfig.from_pretrained(str(folder))
        PEFT_TYPE_TO_CONFIG_MAPPING[written["peft_type"]]
        return written
    except (ValueError, TypeError, KeyError) as error:
        raise PerdureError(f"{file}: not an adapter's settings ({error}); save it again") from error
