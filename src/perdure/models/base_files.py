"""Which JSON file of a base is damaged: transformers ignores some, and names no other."""

from perdure.errors import PerdureError
from perdure.models.pins import folder_of
from perdure.parsing import UnreadableError, read_json


# The files that transformers reads with a base, in its order.
JSON_FILES = (
    *("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "generation_config.json"),
)


def check_json(name: str, revision: str | None, file_name: str) -> None:
    """Check that a file of a base, if it is there, is a JSON mapping.

    Raises:
        PerdureError: it is not; the line names the file.
    """
    if (line := _damage(name, revision, file_name)) is not None:
        raise PerdureError(line)


def unreadable(name: str, revision: str | None) -> str | None:
    """Return an error line about the first damaged JSON file of a base, or None."""
    lines = (_damage(name, revision, file_name) for file_name in JSON_FILES)
    return next((line for line in lines if line is not None), None)


def _damage(name: str, revision: str | None, file_name: str) -> str | None:
    folder = folder_of(name, revision)
    if folder is None or not (folder / file_name).exists():
        return None
    try:
        if isinstance(read_json(folder / file_name), dict):
            return None
        reason = "it is not a mapping"
    except UnreadableError as error:
        reason = "it is empty" if not (folder / file_name).stat().st_size else str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    return (
        f"base {name!r}: its {file_name} cannot be read ({reason}); put the file back from where "
        "the base comes from"
    )
