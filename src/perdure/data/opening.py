"""Opening splits: from a user's description of the rows, and again from their `source`."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.calls import short
from perdure.data import hub, templates
from perdure.data.benchmarks import benchmark_split
from perdure.data.generated import generated_rows
from perdure.data.rows import read
from perdure.data.task import Split, limit_rows
from perdure.errors import PerdureError, nearest


GENERATED = "generated"


def file_split(
    location: str | Path | Mapping[str, Any], limit: int | None, seed: int, role: str = "train"
) -> Split:
    """Read the rows of a file or of a hub dataset, or draw some of them.

    Args:
        location: a path; `hub:...` (see `perdure.data.hub`); or a mapping with `path` or `hub` and
            templates (see `perdure.data.templates`), and for a dataset also config, split and
            revision.
        limit: how many rows to draw; None for all.
        seed: the seed of that draw.
        role: train, dev or test. It decides the split of a dataset if none is named.

    Raises:
        PerdureError: a key is unknown, a template is not valid, or the rows cannot be read.
    """
    if not isinstance(location, str | Path | Mapping):
        raise PerdureError(
            f"rows: expected a file, hub:OWNER/NAME or a mapping, not {type(location).__name__}; "
            "rows that are given in Python are for `perdure.learn`"
        )
    source = (
        _source(location, role) if isinstance(location, Mapping) else _place(str(location), role)
    )
    return open_split(source | {"limit": limit, "seed": seed})


def open_split(source: Mapping[str, Any], data: str | Path | None = None) -> Split:
    """Read the split that `source` describes (see `Split`).

    `data` is the folder of the benchmarks, by default that of the environment's PERDURE_DATA.

    Raises:
        PerdureError: the file or folder no longer exists, or the source is of an unknown kind.
    """
    if "held_out" in source:
        settings = dict(source["held_out"])
        part = settings.pop("part")
        whole = open_split({k: v for k, v in source.items() if k != "held_out"}, data)
        train, test = hold_out(whole, **settings)
        return train if part == "train" else test
    if "benchmark" in source:
        settings = {key: value for key, value in source.items() if key not in ("benchmark", "from")}
        form = source.get("from", "folder")
        return benchmark_split(source["benchmark"], data=data, form=form, **settings)
    if source.get("stream") == GENERATED:
        settings = {key: value for key, value in source.items() if key != "stream"}
        return Split(tuple(generated_rows(**settings)), dict(source))
    if "hub" in source:
        return hub.hub_split(source)
    if not source:
        raise PerdureError(
            "no rows can be opened: they were given in Python, and only their hash is stored"
        )
    if "path" not in source:
        raise PerdureError(
            f"no rows can be opened from {source}: expected path, hub, benchmark or stream"
        )
    row_templates = templates.make_templates(source, str(source["path"]))
    file = read(source["path"], row_templates.row if row_templates else None)
    chosen = limit_rows(range(len(file.rows)), source.get("limit"), source.get("seed", 0))
    return Split(
        rows=tuple(file.rows[i] for i in chosen),
        source=dict(source),
        numbers=tuple(file.numbers[i] for i in chosen),
        notes=file.notes,
    )


def hold_out(
    rows: Split,
    share: float,
    seed: int,
    where: str = "the train rows",
    limit: int | None = None,
) -> tuple[Split, Split]:
    """Hold a share of the train rows out, as test rows.

        count = max(1, round(share * rows))

    Args:
        rows: the train rows.
        share: the share to hold out, above 0 and below 1.
        seed: the seed of the draw.
        where: the name of the rows, with which an error line begins.
        limit: how many of the rows that are held out become test rows; None for all.

    Returns:
        The rows that are left and those held out, both in their order.

    Raises:
        PerdureError: the share or the limit is out of bounds, or no row would be left.
    """
    if not 0 < share < 1:
        raise PerdureError(f"{where}: the share held out must be between 0 and 1, got {share}")
    total = len(rows.rows)
    count = max(1, round(share * total))
    if count >= total:
        raise PerdureError(
            f"{where}: there are {total} rows, of which {count} are to be held out; add rows, or "
            "hold out fewer"
        )
    drawn = set(random.Random(seed).sample(range(total), count))
    tested = limit_rows(sorted(drawn), limit, seed)

    def part(name: str, indices: Sequence[int]) -> Split:
        source = rows.source
        if source is not None:
            held_out = {"share": share, "seed": seed, "part": name}
            is_limited = name == "test" and len(tested) < count
            source = {**source, "held_out": held_out | ({"limit": limit} if is_limited else {})}
        return Split(
            rows=tuple(rows.rows[i] for i in indices),
            source=source,
            numbers=tuple(rows.number(i) for i in indices),
            notes=rows.notes if name == "train" else (),
        )

    left = [i for i in range(total) if i not in drawn]
    return part("train", left), part("test", tested)


def _place(text: str, role: str) -> dict[str, Any]:
    return hub.address(text, role) if text.startswith(hub.HUB) else {"path": text}


def _source(location: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Convert the user's mapping to a source: plain JSON, without keys that are not set."""
    kind = "hub" if "hub" in location else "path"
    keys = (*(hub.KEYS if kind == "hub" else ("path",)), *templates.KEYS)
    if not isinstance(location.get(kind), str):
        raise PerdureError(
            f"rows: expected path or hub, such as {{path: a.csv}}, got {short(dict(location))}"
        )
    for key in location:
        if key not in keys:
            raise PerdureError(
                f"rows of {location[kind]}: unknown key {key!r}; {nearest(str(key), keys)}"
            )
    where = location[kind] if kind == "path" else hub.HUB + location[kind].removeprefix(hub.HUB)
    source = {"path": where} if kind == "path" else hub.address(where, role)
    named = ("config", "split", "revision")
    source |= {key: str(location[key]) for key in named if location.get(key) is not None}
    row_templates = templates.make_templates(location, where)
    if row_templates:
        source |= {"prompt": location["prompt"], "completion": location["completion"]}
        source |= {"labels": row_templates.labels} if row_templates.labels else {}
    return source
