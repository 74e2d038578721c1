"""Whether checkpoints can be merged, before anything is written. Nothing is left out in silence."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import AutoConfig

from perdure.config import Vocabulary
from perdure.errors import PerdureError, one_line
from perdure.merging.checkpoint import Tensors
from perdure.merging.fold import pieces
from perdure.merging.model import Checkpoint, Model, opened
from perdure.merging.pack import Pack
from perdure.merging.rule import Rule
from perdure.merging.token_axes import SIZE
from perdure.merging.vocabulary import align, check_same, short, without_tokens
from perdure.models.checkpoints import check_base_of
from perdure.models.layout import HEAD_WEIGHTS
from perdure.models.pins import pin
from perdure.models.stage_files import check_width
from perdure.models.whole_weights import is_pooler


# Keys of a config that change nothing about what the weights mean, or only how a model is asked.
HARMLESS = {
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
    *(
        "decoder_start_token_id",
        "initializer_range",
        "id2label",
        "label2id",
        "task_specific_params",
    ),
    *("max_length", "max_position_embeddings", "output_attentions", "output_hidden_states"),
    *("return_dict", "problem_type", "pretraining_tp", "unsloth_version", "unsloth_fixed"),
    *("gradient_checkpointing", "_attn_implementation", "_attn_implementation_autoset"),
}
DROPOUT = ("dropout", "dropout_prob", "dropout_rate", "pdrop")  # endings of harmless keys


def check(
    base: Model,
    checkpoints: Sequence[Checkpoint],
    speaks: Checkpoint | None = None,
    vocabulary: Vocabulary = "same",
) -> list[str]:
    """Check that checkpoints can be merged on a base, and return notes about them.

    Args:
        base: the base.
        checkpoints: the checkpoints.
        speaks: the one whose chat template is written, None for that of the base.
        vocabulary: what is done with another vocabulary than the base's: `same` refuses it, with
            the others rows are aligned by token (`Checkpoint.alignment`), if they are not yet.

    Raises:
        PerdureError: they cannot; the line names the checkpoint and what differs.
    """
    _check_not_quantized(base.config.to_dict(), base.name)
    if not any(True for _ in base.places()):
        raise PerdureError(f"{base.name}: has no tensors of numbers to merge; give another base")
    pinned: dict[str, Any] | None = None
    notes = _fit_encoders(base, checkpoints)
    for checkpoint in checkpoints:
        aligns = vocabulary != "same" and checkpoint.alignment is None
        found = align(base, checkpoint, added=vocabulary == "union") if aligns else []
        if speaks is checkpoint and checkpoint.alignment is not None:
            raise PerdureError(
                f"{checkpoint.name}: has another vocabulary than {base.name}, and its tokenizer is "
                "to be written; give a checkpoint with the base's vocabulary"
            )
        if checkpoint.adapter is not None:
            pinned = pinned or pin(base.name, base.revision)
            check_base_of(checkpoint.folder, pinned, base.name)
            _check_adapter(base, checkpoint)
        elif checkpoint.pack is not None:
            _check_pack(base, checkpoint.pack, checkpoint.name)
        else:
            _check_config(base, checkpoint)
            _check_tensors(base, checkpoint)
        found += check_same(base, checkpoint) if vocabulary == "same" else []
        notes += [] if checkpoint is speaks else found
    return notes


def _fit_encoders(base: Model, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Leave out what encoders with a head of our own do not need of files, and return notes.

    Raises:
        PerdureError: a head is of another model, or only some checkpoints have one.
    """
    notes = []
    if base.left_out:
        notes.append(
            f"note: {base.name}: the head of its pretraining is left out, {len(base.left_out)} "
            f"tensors such as {base.left_out[0]}"
        )
    if base.kind != "encoder" or not any(checkpoint.has_head for checkpoint in checkpoints):
        return notes
    for checkpoint in checkpoints:
        if not checkpoint.has_head:
            raise PerdureError(
                f"{checkpoint.name}: has no {HEAD_WEIGHTS}, and other checkpoints have a head; "
                "give a stage of a lineage, or a folder that `perdure export` wrote"
            )
        check_width(checkpoint.name, checkpoint.folder, base.config.hidden_size)
        # A pooler that the base's files lack was drawn, and no answer reads it.
        whole, adapter = checkpoint.whole, checkpoint.adapter
        names = [*(whole.stored if whole else ()), *(adapter.changed if adapter else ())]
        for name in names:
            if is_pooler(name) and name not in base.tensors.stored:
                if whole is not None:
                    del whole.stored[name]
                if adapter is not None:
                    adapter.leave_out(name)
    return notes


def check_statistics(rule: Rule, base: Model, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that there are the statistics that a rule needs, of the right checkpoints.

    Raises:
        PerdureError: there are none, others, or of other tensors.
    """
    if rule.needs is None:
        return
    places = list(base.places())
    names = {place.tensor for place in places}
    known: set[str] | None = None
    for checkpoint in checkpoints:
        statistics = checkpoint.statistics
        if statistics is None or statistics.kind != rule.needs:
            have = "there are none" if statistics is None else f"{statistics.folder} has others"
            raise PerdureError(
                f"{rule.name}: needs statistics of {checkpoint.name}, and {have}; make them with "
                f"`perdure statistics {checkpoint.name} ROWS FOLDER --rule {rule.name}`, and give "
                "--statistics FOLDER for each checkpoint, in their order"
            )
        if checkpoint.alignment is not None and rule.needs == "fisher":
            raise PerdureError(
                f"{rule.name}: the statistics of {checkpoint.name} have rows of its own "
                f"vocabulary; give it the vocabulary of {base.name} first, or take another rule"
            )
        statistics.check(checkpoint.name, checkpoint.hashes_of_content, places)
        measured = names & statistics.tensors.stored.keys()
        if known is not None and measured != known:
            raise PerdureError(
                f"{statistics.folder}: has statistics of other tensors than those of "
                f"{checkpoints[0].name}; make both with the same version of transformers"
            )
        known = measured
        if rule.needs == "fisher" and known < names:
            raise PerdureError(f"{statistics.folder}: has no {min(names - known)}; make it again")


def _check_not_quantized(config: dict[str, Any], name: str) -> None:
    if config.get("quantization_config"):
        raise PerdureError(
            f"{name}: its weights are quantised, and sums of them mean nothing; give the "
            "unquantised checkpoint"
        )


def _check_config(base: Model, checkpoint: Checkpoint) -> None:
    """Check that a whole model has the base's architecture and settings.

    Raises:
        PerdureError: a setting differs that decides what the weights mean.
    """
    try:
        config = AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    except Exception as error:  # transformers' checks of a config raise errors of many types
        raise PerdureError(
            f"{checkpoint.name}: its config.json cannot be used ({one_line(error)}); give the "
            "folder of a model as save_pretrained writes it"
        ) from error
    theirs, ours = config.to_dict(), base.config.to_dict()
    _check_not_quantized(theirs, checkpoint.name)
    if checkpoint.alignment is not None:
        theirs, ours = without_tokens(theirs), without_tokens(ours)
    for key in sorted(ours.keys() | theirs.keys()):
        if key in HARMLESS or key.endswith(DROPOUT) or ours.get(key) == theirs.get(key):
            continue
        hint = "merge only checkpoints that were trained from one base"
        if key == SIZE:
            hint = "`perdure merge` aligns rows by token with --vocabulary base or union"
        raise PerdureError(
            f"{checkpoint.name}: is another model than {base.name}: {key} is "
            f"{short(theirs.get(key))} in its config.json, and {short(ours.get(key))} in the "
            f"base's; {hint}"
        )


def _check_tensors(base: Model, checkpoint: Checkpoint) -> None:
    """Check that a whole model has exactly the base's tensors.

    A weight that is tied to another one may be in the files of only one of the two models.

    Raises:
        PerdureError: a tensor is missing, unknown, of another shape, or no longer tied.
    """
    whole, where = checkpoint.whole, checkpoint.name
    assert whole is not None
    ours, theirs = base.tensors.stored, whole.stored
    for name in sorted(ours.keys() - theirs.keys()):
        if not ours[name].is_float:  # a buffer, such as position_ids, which newer files leave out
            continue
        twin = base.twin(name)
        if twin not in theirs or ours[name].shape != ours[twin].shape:
            raise PerdureError(f"{where}: has no {name}, which the base has; give a whole model")
        whole.stored[name] = theirs[twin]
    for name in sorted(theirs.keys() - ours.keys()):
        if not theirs[name].is_float:
            del theirs[name]
            continue
        twin = base.twin(name)
        if twin is None:
            raise PerdureError(
                f"{where}: has {name}, which the base has not; give the base that it was trained "
                "from"
            )
        with opened(base, [checkpoint]):
            if not _equal(whole, name, twin):
                raise PerdureError(
                    f"{where}: its {name} is not its {twin}, and in the base they are one; give a "
                    "base that has both"
                )
        del theirs[name]
    for name, stored in sorted(ours.items()):
        if name not in theirs:
            continue
        aligned = checkpoint.alignment.axes if checkpoint.alignment else {}
        if _but(theirs[name].shape, aligned.get(name)) != _but(stored.shape, aligned.get(name)):
            shapes = [" x ".join(map(str, shape)) for shape in (theirs[name].shape, stored.shape)]
            raise PerdureError(
                f"{where}: is of another shape: {name} is {shapes[0]}, and {shapes[1]} in the base"
            )
        if theirs[name].is_float != stored.is_float:
            codes = theirs[name].code, stored.code
            raise PerdureError(f"{where}: {name} is of type {codes[0]}, and {codes[1]} in the base")
    with opened(base, [checkpoint]):
        for name, stored in sorted(ours.items()):
            in_both = name in theirs and not stored.is_float
            if in_both and not _equal(whole, name, name, base.tensors):
                raise PerdureError(
                    f"{where}: its {name}, which is no weight, differs from the base's; give the "
                    "base that it was trained from"
                )


def _but(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """Return a shape without the size of the vocabulary, if its rows are aligned."""
    return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])


def _equal(tensors: Tensors, name: str, other: str, of: Tensors | None = None) -> bool:
    """Return whether two tensors of files that are open are equal."""
    if tensors.stored[name].shape != (of or tensors).stored[other].shape:
        return False
    return all(
        torch.equal(tensors.read(name, piece), (of or tensors).read(other, piece))
        for piece in pieces(tensors.stored[name].shape)
    )


def _check_pack(base: Model, pack: Pack, name: str) -> None:
    """Check that a pack is of a base, byte by byte, and has all of its tensors.

    Raises:
        PerdureError: it is of another one.
    """
    shapes = {place.tensor: place.shape for place in base.places()}
    coded = {tensor: one.shape for tensor, one in pack.coded.items()}
    if pack.base != base.hashes or coded != shapes:
        raise PerdureError(
            f"{name}: is a pack on another base, {pack.base_name!r}, or that one's files have "
            f"changed; its hashes are not those of {base.name}"
        )


def _check_adapter(base: Model, checkpoint: Checkpoint) -> None:
    """Check that the base has the tensors that an adapter changes.

    Raises:
        PerdureError: it has not, or of another shape, or the tensor is tied to another one.
    """
    adapter, stored = checkpoint.part, base.tensors.stored
    for name, shape in adapter.changed.items():
        twin = base.twin(name)
        if twin is not None and name not in stored:
            raise PerdureError(
                f"{checkpoint.name}: changes {name}, which is {twin} in the base; it would have to "
                "be one matrix no longer. Leave it out of the adapter's target_modules"
            )
        if name not in stored:
            raise PerdureError(
                f"{checkpoint.name}: changes {name}, which the base's files have not under this "
                "name; merge it into its base with PEFT's merge_and_unload, and give that model"
            )
        if name in base.tied.values() and any(t not in stored for t in _tied_to(base, name)):
            raise PerdureError(
                f"{checkpoint.name}: changes {name}, which is the output layer as well, and PEFT "
                "changes only one of the two. Leave it out of the adapter's target_modules"
            )
        axis = checkpoint.alignment.axes.get(name) if checkpoint.alignment else None
        if _but(stored[name].shape, axis) != _but(shape, axis):
            shapes = [" x ".join(map(str, one)) for one in (shape, stored[name].shape)]
            raise PerdureError(
                f"{checkpoint.name}: is of another shape: {name} is {shapes[0]}, and {shapes[1]} "
                "in the base"
            )


def _tied_to(base: Model, name: str) -> Iterable[str]:
    return [target for target, source in base.tied.items() if source == name]
