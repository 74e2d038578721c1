"""Answers of models as compressed JSON, with the same bytes every time."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from perdure.errors import PerdureError, one_line
from perdure.parsing import LARGEST_JSON, parse_json, read_limited
from perdure.shapes import check_shape


T = TypeVar("T")
DAMAGED = (OSError, EOFError, zlib.error, ValueError, AttributeError, TypeError, KeyError)


def write_compressed(file: Path, plain: Any) -> None:
    """Write plain JSON, compressed."""
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    file.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def read_compressed(file: Path, shape: Any, build: Callable[[Any], T]) -> T:
    """Read what `write_compressed` wrote, and build objects of it.

    Args:
        file: the file.
        shape: the type of its content (`perdure.shapes`).
        build: makes the objects of the content.

    Raises:
        PerdureError: the file is damaged, or `build` cannot use what is in it.
    """
    try:
        with gzip.open(file) as unpacked:
            content = read_limited(unpacked, LARGEST_JSON, str(file))
        plain = parse_json(content)
        check_shape(plain, shape, "its content")
        return build(plain)
    except DAMAGED as error:
        raise PerdureError(
            f"{file}: damaged ({one_line(error)}); restore it from a copy"
        ) from error
