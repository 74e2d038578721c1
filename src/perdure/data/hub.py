"""Rows of a dataset on the Hugging Face hub, or of a folder with the same layout.

    hub:OWNER/NAME                 the split for the role: train, validation or test
    hub:OWNER/NAME:SPLIT
    hub:OWNER/NAME:CONFIG:SPLIT

In each form, @REVISION may follow NAME. The dataset is read by `datasets.load_dataset`, which runs
none of the dataset's code. A folder OWNER/NAME in the working directory takes precedence over the
hub, which makes it possible to work without a network.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from perdure.data.forms import Notes, as_row, mapping
from perdure.data.task import Split, limit_rows
from perdure.data.templates import check_columns, make_templates
from perdure.errors import PerdureError, nearest
from perdure.parsing import without_nulls


if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
KEYS = ("hub", "config", "split", "revision")
WRONG_NAMES = (  # errors of `datasets` that give a wrong name and then list the valid ones
    ("split", re.compile(r"Unknown split \"(?P<name>.*?)\".*?\[(?P<valid>.*)\]", re.S)),
    ("config", re.compile(r"BuilderConfig '(?P<name>.*?)' not found.*?\[(?P<valid>.*)\]", re.S)),
    ("config", re.compile(r"Config name is (?P<name>missing).*?configs: \[(?P<valid>.*?)\]", re.S)),
)


def address(text: str, role: str) -> dict[str, Any]:
    """Parse `hub:...` into the keys of a source; without a split, `role` decides it.

    Raises:
        PerdureError: the address has no OWNER/NAME, or more parts than dataset, config and split.
    """
    # A colon inside brackets belongs to a slice: train[:100].
    named, *rest = re.split(r":(?![^\[]*\])", text.removeprefix(HUB))
    name, _, revision = named.partition("@")
    if "/" not in name or len(rest) > 2 or not all(rest):
        raise PerdureError(
            f"{text}: a dataset of the hub is written hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or "
            "hub:OWNER/NAME:CONFIG:SPLIT"
        )
    split = rest[-1] if rest else SPLITS[role]
    config = rest[0] if len(rest) == 2 else None
    return {"hub": name, "config": config, "split": split, "revision": revision or None}


def hub_split(source: Mapping[str, Any]) -> Split:
    """Read the rows that a source with the key `hub` describes.

    The revision in the split's source is the hash of the commit, where it is known.

    Raises:
        PerdureError: the dataset cannot be loaded, a name in the source is wrong, or a record is
            not a row.
    """
    config, split = source.get("config"), source["split"]
    dataset, revision = load(source["hub"], config, split, source.get("revision"))
    where = describe(source["hub"], config, split)
    templates = make_templates(source, where)
    names, notes = label_names(dataset), Notes()
    if templates:
        check_columns(templates.columns(), dataset.column_names, where)
        dataset = dataset.select_columns(templates.columns())
        templates = replace(templates, names=names)
    else:
        _check_media(dataset, where)
    if not len(dataset):
        raise PerdureError(f"{where}: the split has no rows; choose another one")
    chosen = limit_rows(range(len(dataset)), source.get("limit"), source.get("seed", 0))
    rows = []
    for i, raw in zip(chosen, dataset.select(chosen), strict=True):
        at, record = f"{where}, row {i + 1}", without_nulls(cast(dict, raw))
        if templates:
            rows.append(templates.row(raw, at))
        else:
            rows.append(as_row(_named(record, names), at, notes))
    return Split(
        rows=tuple(rows),
        source=dict(source) | {"revision": revision},
        numbers=tuple(i + 1 for i in chosen),
        notes=notes.lines(where),
    )


def _check_media(dataset: "Dataset", where: str) -> None:
    """Raise PerdureError for a column of images, audio or video before any of it is decoded."""
    for column, kind in dataset.features.items():
        type_name = type(kind).__name__
        if type_name in ("Image", "Audio", "Video"):
            others = [name for name in dataset.column_names if name != column]
            raise PerdureError(
                f"{where}: column {column!r} has data of type {type_name}, but only text is "
                f"learned; name the columns of text with {mapping(others)} next to hub"
            )


def _named(record: Any, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Replace the numbers of a record's labels by their names; -1 stands for no label."""
    labels = {
        column: label_names[number]
        for column, label_names in names.items()
        if (number := record.get(column)) is not None and number >= 0
    }
    return record | labels


def describe(name: str, config: str | None, split: str) -> str:
    """Return a dataset's address as users write it, without its revision."""
    return HUB + ":".join(part for part in (name, config, split) if part)


def load(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    data_files: str | None = None,
) -> "tuple[Dataset, str | None]":
    """Load a split, and return it with the hash of its commit, if that is known.

    Raises:
        PerdureError: the dataset cannot be reached, or has no such config, split or revision.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    revision = _commit(name, revision)
    files = {split: data_files} if data_files else None
    settings: dict[str, Any] = {"split": split, "revision": revision, "data_files": files}
    try:
        if not Path(name).is_dir():
            dataset = datasets.load_dataset(name, config, **settings)
        else:  # without a fresh cache, `datasets` may miss that a file of the folder has changed
            with tempfile.TemporaryDirectory() as cache:
                settings |= {"cache_dir": cache, "keep_in_memory": True}
                dataset = datasets.load_dataset(name, config, **settings)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise PerdureError(_load_error(error, name, config, split, revision)) from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset, revision


def label_names(dataset: "Dataset") -> dict[str, list[str]]:
    """Return the label names of each column that has them (of type `ClassLabel`)."""
    from datasets import ClassLabel

    return {
        column: kind.names
        for column, kind in dataset.features.items()
        if isinstance(kind, ClassLabel)
    }


def _commit(name: str, revision: str | None) -> str | None:
    """Return the hash of the commit that a revision refers to now.

    The revision itself is returned for a folder, or if the hub does not answer.
    """
    if Path(name).is_dir() or re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=20).sha or revision
    except Exception:  # of any HTTP library; loading then finds a local copy or reports the error
        return revision


def _load_error(
    error: Exception, name: str, config: str | None, split: str, revision: str | None
) -> str:
    """Return the error line for an exception that `datasets` raised."""
    from datasets.exceptions import DatasetNotFoundError

    where, message = describe(name, config, split), str(error)
    for kind, pattern in WRONG_NAMES:
        match = pattern.search(message)
        if match:
            valid = re.findall(r"'([^']*)'", match["valid"])
            missing = match["name"] == "missing"
            wrong = f"the {kind} is missing" if missing else f"no {kind} {match['name']!r}"
            hint = f"valid: {', '.join(valid)}" if missing else nearest(match["name"], valid)
            return f"{where}: {wrong}; {hint}"
    if "scripts are no longer supported" in message:
        return f"{where}: the dataset needs its own script, which is never run; find a Parquet copy"
    folder = Path(name)
    siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
    if not folder.is_dir() and siblings and folder.parent != Path():
        return f"{where}: there is no folder {name}; {nearest(str(folder), siblings)}"
    if isinstance(error, DatasetNotFoundError):
        at = f" at revision {revision}" if revision else ""
        return (
            f"{where}: not on the hub{at}, or you have no access; check the name or run "
            "`hf auth login`"
        )
    if isinstance(error, ConnectionError):
        return (
            f"{where}: the hub cannot be reached and there is no local copy; with a network, run "
            f"hf download --repo-type dataset {name} --local-dir {name}"
        )
    cause = error.__cause__ or error
    return f"{where}: cannot be read ({str(cause).splitlines()[0] if str(cause) else message})"
