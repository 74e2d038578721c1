"""Rows of a dataset on the Hugging Face hub, or of a folder that is laid out like one.

    hub:OWNER/NAME                 the split of its role: train, validation or test
    hub:OWNER/NAME:SPLIT
    hub:OWNER/NAME:CONFIG:SPLIT    and @REVISION after NAME in each

It is read by `datasets.load_dataset`, which runs no code of the dataset's. A folder OWNER/NAME in
the working directory goes before the hub: this is also how to work without a network.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram.data.files import without_nulls
from engram.data.forms import Notes, as_row, mapping
from engram.data.task import Split, limit_rows
from engram.data.templates import check_columns, make_templates
from engram.errors import EngramError, nearest


if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub:"
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
KEYS = ("hub", "config", "split", "revision")
LISTED = (  # what `datasets` says of a wrong name, before the list of the valid ones
    ("split", re.compile(r"Unknown split \"(?P<name>.*?)\".*?\[(?P<valid>.*)\]", re.S)),
    ("config", re.compile(r"BuilderConfig '(?P<name>.*?)' not found.*?\[(?P<valid>.*)\]", re.S)),
    ("config", re.compile(r"Config name is (?P<name>missing).*?configs: \[(?P<valid>.*?)\]", re.S)),
)


def address(text: str, role: str) -> dict[str, Any]:
    """What `hub:...` says, as the keys of a source; the split is that of the role if not given.

    Raises:
        EngramError: no OWNER/NAME, or more parts than dataset, config and split.
    """
    # A colon inside brackets belongs to a slice: train[:100].
    named, *rest = re.split(r":(?![^\[]*\])", text.removeprefix(HUB))
    name, _, revision = named.partition("@")
    if "/" not in name or len(rest) > 2 or not all(rest):
        raise EngramError(
            f"{text}: a dataset of the hub is written hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or "
            "hub:OWNER/NAME:CONFIG:SPLIT"
        )
    split = rest[-1] if rest else SPLITS[role]
    config = rest[0] if len(rest) == 2 else None
    return {"hub": name, "config": config, "split": split, "revision": revision or None}


def hub_split(source: Mapping[str, Any]) -> Split:
    """The rows that a source with the key `hub` describes; its revision becomes the commit's hash.

    Raises:
        EngramError: the dataset cannot be had, a name in the source is wrong, or a row is no row.
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
        raise EngramError(f"{where}: the split holds no rows; take another one")
    chosen = limit_rows(range(len(dataset)), source.get("limit"), source.get("seed", 0))
    rows = []
    for i, raw in zip(chosen, dataset.select(chosen), strict=True):
        at, record = f"{where}, row {i + 1}", without_nulls(raw)
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
    """Raise EngramError before an image or a sound is decoded, none of which is learned."""
    for column, kind in dataset.features.items():
        what = type(kind).__name__
        if what in ("Image", "Audio", "Video"):
            others = [name for name in dataset.column_names if name != column]
            raise EngramError(
                f"{where}: column {column!r} holds data of type {what}, and only text is learned; "
                f"say which columns are text with {mapping(others)} beside hub"
            )


def _named(record: Any, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """A record with the names of its labels in place of their numbers; -1 stands for none."""
    labels = {key: of[record[key]] for key, of in names.items() if record.get(key, -1) >= 0}
    return record | labels


def describe(name: str, config: str | None, split: str) -> str:
    """A dataset as users write it, without its revision."""
    return HUB + ":".join(part for part in (name, config, split) if part)


def load(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    data_files: str | None = None,
) -> "tuple[Dataset, str | None]":
    """A split, and the hash of the commit it is of where that can be known.

    Raises:
        EngramError: the dataset cannot be reached, or has no such config, split or revision.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    revision = _commit(name, revision)
    files = {split: data_files} if data_files else None
    settings: dict[str, Any] = {"split": split, "revision": revision, "data_files": files}
    try:
        if not Path(name).is_dir():
            dataset = datasets.load_dataset(name, config, **settings)
        else:  # the cache of `datasets` may not see that a file of a folder has changed
            with tempfile.TemporaryDirectory() as cache:
                settings |= {"cache_dir": cache, "keep_in_memory": True}
                dataset = datasets.load_dataset(name, config, **settings)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise EngramError(_told(error, name, config, split, revision)) from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset, revision


def label_names(dataset: "Dataset") -> dict[str, list[str]]:
    """The names of the labels of each column that has them (the hub's ClassLabel)."""
    from datasets import ClassLabel

    return {
        column: kind.names
        for column, kind in dataset.features.items()
        if isinstance(kind, ClassLabel)
    }


def _commit(name: str, revision: str | None) -> str | None:
    """The hash that a revision stands for now; as given for a folder, or where nobody answers."""
    if Path(name).is_dir() or re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=20).sha or revision
    except Exception:  # of whichever HTTP library; loading finds a copy here, or says why not
        return revision


def _told(error: Exception, name: str, config: str | None, split: str, revision: str | None) -> str:
    """The error line for what `datasets` has raised."""
    from datasets.exceptions import DatasetNotFoundError

    where, said = describe(name, config, split), str(error)
    for kind, pattern in LISTED:
        found = pattern.search(said)
        if found:
            valid = re.findall(r"'([^']*)'", found["valid"])
            missing = found["name"] == "missing"
            wrong = f"the {kind} is missing" if missing else f"no {kind} {found['name']!r}"
            hint = f"valid: {', '.join(valid)}" if missing else nearest(found["name"], valid)
            return f"{where}: {wrong}; {hint}"
    if "scripts are no longer supported" in said:
        return f"{where}: a script makes it, and no code of a dataset is run; find a Parquet copy"
    folder = Path(name)
    siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
    if not folder.is_dir() and siblings and folder.parent != Path():
        return f"{where}: there is no folder {name}; {nearest(str(folder), siblings)}"
    if isinstance(error, DatasetNotFoundError):
        at = f" at revision {revision}" if revision else ""
        return f"{where}: not on the hub{at}, or not open to you; check the name or `hf auth login`"
    if isinstance(error, ConnectionError):
        return (
            f"{where}: the hub cannot be reached and there is no copy here; where there is a "
            f"network: hf download --repo-type dataset {name} --local-dir {name}"
        )
    cause = error.__cause__ or error
    return f"{where}: cannot be read ({str(cause).splitlines()[0] if str(cause) else said})"
