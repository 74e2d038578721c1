"""The vocabulary of a checkpoint beside that of the base: tokens, and which rows are whose.

Rows are compared by the text of their tokens.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.errors import PerdureError, one_line
from perdure.merging.alignment import Alignment, matched
from perdure.merging.model import Checkpoint, Model
from perdure.merging.token_axes import SIZE
from perdure.models.base import load_tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
BESIDE_THEM = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
FEW = 0.5  # a checkpoint with a smaller share of the base's tokens was hardly trained from it


def align(base: Model, checkpoint: Checkpoint, added: bool = False) -> list[str]:
    """Align the rows of a checkpoint with those of the base by token, and return notes about it.

    The result is in `checkpoint.alignment`, which stays None if the vocabularies are the same.

    Args:
        base: the base.
        checkpoint: the checkpoint.
        added: whether its own tokens are to be added to those of the base.

    Raises:
        PerdureError: they cannot be aligned; the line says why.
    """
    tokenizer = tokenizer_of(base, checkpoint)
    if tokenizer is None:
        return []
    ours, theirs = base.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours == theirs and not _other_shapes(base, checkpoint):
        return notes_about(base, checkpoint, tokenizer)
    axes = _axes(base, checkpoint, differ=ours != theirs)
    our_rows, their_rows = _row_counts(base, checkpoint, axes)
    if ours == theirs and our_rows == their_rows:  # what else differs is found later
        return notes_about(base, checkpoint, tokenizer)
    if not axes:  # an adapter that leaves all rows as they are
        their_rows = max(theirs.values(), default=-1) + 1
    rows = matched(ours, our_rows, theirs, their_rows)
    lacking = tuple(t for t, row in ours.items() if row < our_rows and rows[row] < 0)
    own = {t: row for t, row in theirs.items() if t not in ours and row < their_rows}
    checkpoint.alignment = Alignment(
        rows=rows,
        axes=axes,
        shared=sum(row < our_rows for row in ours.values()) - len(lacking),
        lacking=lacking,
        own=dict(sorted(own.items(), key=lambda pair: pair[1])),
    )
    lines = [*notes_about(base, checkpoint, tokenizer), *_lines(base, checkpoint, added)]
    roles = [r for r in ROLES if getattr(tokenizer, r, None) != getattr(base.tokenizer, r, None)]
    if roles:
        other = ", ".join(f"{getattr(tokenizer, role, None)!r} as {role}" for role in roles)
        lines.append(f"note: {checkpoint.name} has {other}; what is written has the base's")
    return lines


def _other_shapes(base: Model, checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has a tensor of another shape than the base."""
    stored = base.tensors.stored
    if checkpoint.adapter is not None:
        shapes = checkpoint.adapter.changed
    else:
        theirs = checkpoint.whole.stored if checkpoint.whole is not None else {}
        shapes = {name: one.shape for name, one in theirs.items()}
    return any(name in stored and stored[name].shape != shape for name, shape in shapes.items())


def _lines(base: Model, checkpoint: Checkpoint, added: bool) -> list[str]:
    """Return what was aligned, in words, and a warning if that is little.

    Args:
        base: the base.
        checkpoint: the checkpoint, which is aligned with it.
        added: whether its own tokens are added to those of the base.
    """
    alignment, name = checkpoint.alignment, checkpoint.name
    assert alignment is not None
    what = "its rows are aligned by token" if alignment.axes else "it changes no rows of tokens"
    lines = [
        f"note: {name} has another vocabulary than {base.name}, and {what}: "
        f"{alignment.in_words(none_left_out=added)}"
    ]
    total = alignment.shared + len(alignment.lacking)
    if alignment.shared < FEW * total:
        lines.append(
            f"warning: {name} has only {alignment.shared} of the {total} tokens of {base.name}; it "
            "was probably not trained from this base"
        )
    return lines


def _axes(base: Model, checkpoint: Checkpoint, differ: bool) -> dict[str, int]:
    """Return which tensors that a checkpoint changes have rows for tokens, with the axis.

    Args:
        base: the base.
        checkpoint: the checkpoint.
        differ: whether the two have other tokens, and not only other numbers of rows.

    Raises:
        PerdureError: the checkpoint changes them in a way that cannot be aligned.
    """
    axes = base.token_axes
    if checkpoint.pack is not None and differ:
        raise PerdureError(
            f"{checkpoint.name}: is a pack with another vocabulary than {base.name}; unpack it, "
            "and give the checkpoint"
        )
    if checkpoint.adapter is None:
        return axes
    adapter = checkpoint.adapter
    changed = {name: axis for name, axis in axes.items() if name in adapter.changed}
    factors = sorted(changed.keys() - adapter.replaced.keys())
    if factors and differ:
        raise PerdureError(
            f"{checkpoint.name}: has another vocabulary than {base.name}, and adds to "
            f"{factors[0]}, whose rows are tokens, so it is unknown what it adds to which token; "
            "merge it into its base with PEFT's merge_and_unload, and give that model"
        )
    return {name: axis for name, axis in changed.items() if name in adapter.replaced}


def _row_counts(base: Model, checkpoint: Checkpoint, axes: Mapping[str, int]) -> tuple[int, int]:
    """Return the rows of the base's tables and of a checkpoint's.

    Raises:
        PerdureError: not all tables of one of them have the same.
    """
    stored = base.tensors.stored
    ours = {stored[name].shape[axis] for name, axis in base.token_axes.items()}
    theirs = set()
    for name, axis in axes.items():
        shape = _shape(base, checkpoint, name)
        if shape is not None and len(shape) == len(stored[name].shape):
            theirs.add(shape[axis])
    for name, counts in ((base.name, ours), (checkpoint.name, theirs)):
        if len(counts) > 1:
            raise PerdureError(
                f"{name}: its tables of tokens have {' and '.join(map(str, sorted(counts)))} rows, "
                "and only such with the same can be aligned"
            )
    [count] = ours
    return count, next(iter(theirs), count)


def _shape(base: Model, checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    """Return the shape of a checkpoint's tensor, None if it has none of the name."""
    if checkpoint.adapter is not None:
        return checkpoint.adapter.changed[name]
    if checkpoint.pack is not None:
        return base.tensors.stored[name].shape
    stored = checkpoint.whole.stored if checkpoint.whole is not None else {}
    twin = name if name in stored else base.twin(name)
    return stored[twin].shape if twin in stored else None


def without_tokens(config: Any) -> Any:
    """Return a config, as its file has it, without the size of the vocabulary and ids of tokens."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: without_tokens(value)
        for key, value in config.items()
        if key != SIZE and not str(key).endswith("_token_id")
    }


def tokenizer_of(base: Model, checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a checkpoint, None if it has none.

    Raises:
        PerdureError: it does not load.
    """
    folder = checkpoint.folder
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    if _same_files(folder, base.folder):
        return base.tokenizer
    try:
        return load_tokenizer(str(folder))
    except Exception as error:  # transformers raises errors of many types
        raise PerdureError(
            f"{checkpoint.name}: its tokenizer does not load ({one_line(error)}); remove its "
            "tokenizer files if they are the base's"
        ) from error


def check_same(base: Model, checkpoint: Checkpoint) -> list[str]:
    """Check that a checkpoint was trained with the base's vocabulary, and return notes about it.

    Raises:
        PerdureError: it was not, or its tokenizer does not load.
    """
    tokenizer = tokenizer_of(base, checkpoint)
    if tokenizer is None:
        return []
    ours, theirs = base.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        different = sorted(
            token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
        )
        raise PerdureError(
            f"{checkpoint.name}: its vocabulary is not the base's ({len(different)} tokens differ, "
            f"such as {short(different[0])}), so rows of its embeddings mean other tokens; "
            "`perdure merge` aligns them with --vocabulary base or union"
        )
    return notes_about(base, checkpoint, tokenizer)


def notes_about(
    base: Model, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return what differs between the tokenizers of a checkpoint and the base but tokens."""
    if tokenizer is base.tokenizer:
        return []
    notes = []
    if tokenizer.chat_template != base.tokenizer.chat_template:
        whose = "the base's" if base.tokenizer.chat_template else "none, as the base"
        notes.append(f"another chat template than {base.name}; what is written has {whose}")
    if parts := _other_parts(base.tokenizer, tokenizer):
        notes.append(
            f"a tokenizer that divides texts otherwise than that of {base.name} (its "
            f"{' and '.join(parts)}); what is written has the base's"
        )
    return [f"note: {checkpoint.name} has {note}" for note in notes]


def _other_parts(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> list[str]:
    """Return what differs in how two tokenizers find their tokens in a text."""
    backends = [getattr(one, "backend_tokenizer", None) for one in (ours, theirs)]
    if None in backends:
        return []
    one, other = (json.loads(backend.to_str()) for backend in backends if backend is not None)
    parts = [key for key in ("normalizer", "pre_tokenizer") if one[key] != other[key]]
    if set(ours.get_vocab()) == set(theirs.get_vocab()):
        mergers = [model["model"].get("merges") for model in (one, other)]
        parts += ["merges"] if mergers[0] != mergers[1] else []
    return parts


def _same_files(folder: Path, other: Path) -> bool:
    """Return whether two folders have the same files of a tokenizer, or both have none."""
    return all(
        (folder / name).is_file() == (other / name).is_file()
        and (
            not (folder / name).is_file()
            or (folder / name).read_bytes() == (other / name).read_bytes()
        )
        for name in (*TOKENIZER_FILES, *BESIDE_THEM)
    )


def short(value: Any, most: int = 60) -> str:
    """Return a value as it is written in Python, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
