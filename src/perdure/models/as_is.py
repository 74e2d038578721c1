"""Loading a model only to ask it: a folder, a model on the hub, or a PEFT adapter on its base."""

from pathlib import Path

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError

from perdure.errors import PerdureError, one_line
from perdure.models.base import Base, BaseInfo, load_pretrained, read_base
from perdure.models.classifier import Classifier
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, HEAD_WEIGHTS
from perdure.models.stage_files import check_width, read_head
from perdure.parsing import read_json
from perdure.say import Say, silent


def is_adapter(path: str) -> bool:
    """Return whether a path is the folder of a PEFT adapter."""
    return (Path(path) / ADAPTER_SETTINGS).is_file()


def settings_file(folder: Path) -> Path:
    """Return the file of the settings of a PEFT adapter.

    Raises:
        PerdureError: the folder has no such file.
    """
    file = folder / ADAPTER_SETTINGS
    if not file.is_file():
        raise PerdureError(
            f"{folder}: no {ADAPTER_SETTINGS} in it; give the folder that PEFT's save_pretrained "
            "wrote"
        )
    return file


def base_of_adapter(path: str) -> tuple[str, str | None]:
    """Return the base that an adapter's folder names, and its revision if there is one.

    Raises:
        PerdureError: there are no settings, or they cannot be read or name no base.
    """
    file = settings_file(Path(path))
    try:
        written = read_json(file)
        name, revision = written.get("base_model_name_or_path"), written.get("revision")
    except (ValueError, AttributeError) as error:
        raise PerdureError(f"{file}: not an adapter's settings ({error}); save it again") from error
    if not name or not isinstance(name, str):
        raise PerdureError(
            f"{file}: it names no base; write the base's folder or name in base_model_name_or_path"
        )
    return name, revision


def load_as_is(
    path: str, say: Say = silent, with_head: bool = False, revision: str | None = None
) -> Base:
    """Load a model in the data type of its files, without anything to train.

    The tokenizer of an adapter is its base's.

    Args:
        path: the folder or the name of the model or adapter.
        say: called with each warning about the files.
        with_head: whether an encoder is loaded as well, with the head that is beside its weights.
        revision: the commit of a model on the hub. An adapter names that of its base.

    Raises:
        PerdureError: there is no such model, its files do not load, or it is an encoder, unless
            `with_head` and it has a head.
    """
    name, revision = base_of_adapter(path) if is_adapter(path) else (path, revision)
    info = read_base(name, revision)
    if info.kind == "encoder" and not with_head:
        raise PerdureError(f"{path}: an encoder cannot generate; give a model that answers in text")
    network = load_pretrained(name, info.kind, revision=revision, say=say)
    if is_adapter(path):
        network = _with_stored_adapter(network, path)
    model = _with_stored_head(network, path, info) if info.kind == "encoder" else network
    base = Base(path, info.kind, model, info.tokenizer, limits=info.limits, cache=info.cache)
    base.to_accelerator()
    return base


def _with_stored_head(network, path: str, info: BaseInfo) -> Classifier:
    if not (Path(path) / HEAD_WEIGHTS).is_file():
        raise PerdureError(
            f"{path}: an encoder answers nothing without a head; give a stage of a lineage, or a "
            f"folder with {HEAD_WEIGHTS}"
        )
    check_width(path, Path(path), info.config.hidden_size)
    labels, weight, bias = read_head(Path(path))
    model = Classifier(network, info.config.hidden_size)
    model.set_head(weight, bias, labels)
    return model


def _with_stored_adapter(network, path: str) -> PeftModel:
    if not (Path(path) / ADAPTER_WEIGHTS).is_file():
        raise PerdureError(
            f"{path}: no {ADAPTER_WEIGHTS} in it; a pickled adapter cannot be loaded, save it "
            "again with safetensors"
        )
    try:
        settings = PeftConfig.from_pretrained(path)
        return PeftModel.from_pretrained(network, path, config=settings)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise PerdureError(
            f"{path}: the adapter does not load on its base ({one_line(error)}); give the folder "
            "that PEFT's save_pretrained wrote"
        ) from error
