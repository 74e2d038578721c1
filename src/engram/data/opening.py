"""Splits from what users write where rows are wanted, and again from their `source`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram.data import hub, templates
from engram.data.benchmarks import benchmark_split
from engram.data.generated import generated_rows
from engram.data.rows import read
from engram.data.task import Split, limit_rows
from engram.errors import EngramError, nearest


GENERATED = "generated"


def file_split(
    given: str | Path | Mapping[str, Any], limit: int | None, seed: int, role: str = "train"
) -> Split:
    """The rows of a file or of a hub dataset, all or `limit` of them drawn with the seed.

    Args:
        given: a path; `hub:...` (see `engram.data.hub`); or a mapping with `path` or `hub` and
            templates (see `engram.data.templates`), for a dataset also config, split, revision.
        limit: how many rows to draw; None for all.
        seed: of that draw.
        role: train, dev or test: which split of a dataset is meant if none is named.

    Raises:
        EngramError: an unknown key, a template that is none, or rows that cannot be read.
    """
    source = _source(given, role) if isinstance(given, Mapping) else _place(str(given), role)
    return open_split(source | {"limit": limit, "seed": seed})


def open_split(source: Mapping[str, Any], data: str | Path | None = None) -> Split:
    """The split that `source` describes; `data` is the benchmarks' folder (else ENGRAM_DATA).

    Raises:
        EngramError: the file or folder is gone, or nothing of this source is known.
    """
    if "benchmark" in source:
        settings = {key: value for key, value in source.items() if key not in ("benchmark", "from")}
        form = source.get("from", "folder")
        return benchmark_split(source["benchmark"], data=data, form=form, **settings)
    if source.get("stream") == GENERATED:
        settings = {key: value for key, value in source.items() if key != "stream"}
        return Split(tuple(generated_rows(**settings)), dict(source))
    if "hub" in source:
        return hub.hub_split(source)
    if "path" not in source:
        raise EngramError(
            f"no rows can be opened from {source}: expected path, hub, benchmark or stream"
        )
    made = templates.make_templates(source, str(source["path"]))
    found = read(source["path"], made.row if made else None)
    chosen = limit_rows(range(len(found.rows)), source.get("limit"), source.get("seed", 0))
    return Split(
        rows=tuple(found.rows[i] for i in chosen),
        source=dict(source),
        numbers=tuple(found.numbers[i] for i in chosen),
        notes=found.notes,
    )


def _place(text: str, role: str) -> dict[str, Any]:
    return hub.address(text, role) if text.startswith(hub.HUB) else {"path": text}


def _source(given: Mapping[str, Any], role: str) -> dict[str, Any]:
    """A mapping of the user's as a source: plain JSON, without what is not set."""
    kind = "hub" if "hub" in given else "path"
    keys = (*(hub.KEYS if kind == "hub" else ("path",)), *templates.KEYS)
    if not isinstance(given.get(kind), str):
        raise EngramError(f"rows: expected path or hub, such as {{path: a.csv}}, got {dict(given)}")
    for key in given:
        if key not in keys:
            raise EngramError(
                f"rows of {given[kind]}: unknown key {key!r}; {nearest(str(key), keys)}"
            )
    where = given[kind] if kind == "path" else hub.HUB + given[kind].removeprefix(hub.HUB)
    source = {"path": where} if kind == "path" else hub.address(where, role)
    named = ("config", "split", "revision")
    source |= {key: str(given[key]) for key in named if given.get(key) is not None}
    made = templates.make_templates(given, where)
    if made:
        source |= {"prompt": given["prompt"], "completion": given["completion"]}
        source |= {"labels": made.labels} if made.labels else {}
    return source
