"""`pack` stores a checkpoint as its difference from its base, and `unpack` restores it."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

from perdure.config import Codec
from perdure.disk import check_new, remove
from perdure.errors import NotFiniteError, PerdureError, nearest
from perdure.merging.fold import pieces
from perdure.merging.model import Checkpoint, Model, opened
from perdure.merging.output import JOURNAL, Output
from perdure.merging.pack import ABOUT, PACKED, Coded, Packer, about_pack
from perdure.merging.preflight import check
from perdure.merging.streamed import MODEL
from perdure.merging.write import copy_beside
from perdure.models.hashing import file_hash
from perdure.models.layout import HEAD_WEIGHTS
from perdure.say import Say
from perdure.seeds import digest
from perdure.verbs.merge import open_model, owned
from perdure.writing import publish, writing


def pack(
    name: str, out: str | Path, base_name: str | None, codec: Codec, energy: float, say: Say
) -> dict[str, Any]:
    """Pack a checkpoint into a new folder and describe it. See `perdure.api.pack`."""
    out = Path(out)
    check_new(out)
    if codec not in get_args(Codec):
        raise PerdureError(f"codec {codec!r} is not a choice; {nearest(codec, get_args(Codec))}")
    if not 0 < energy <= 1:
        raise PerdureError(f"energy: must be > 0 and <= 1, got {energy:g}")
    checkpoint = open_model(name)
    if checkpoint.whole is None:
        what = "a LoRA adapter, which is small already" if checkpoint.adapter else "a pack already"
        raise PerdureError(f"{name}: is {what}; give a whole model")
    if base_name is None:
        raise PerdureError("base: give the model from which it was trained, as --base BASE")
    base = Model(base_name, bare=checkpoint.has_head)
    for line in check(base, [checkpoint]):
        say(line)
    work = out.parent / f".{out.name}.packing"
    with writing(out), owned(work, out):
        about = _write(work / MODEL, base, checkpoint, codec, energy)
        _copy_head(checkpoint, work / MODEL)
        _publish(work / MODEL, out)
    remove(work)
    stored = about.pop("tensors").values()
    tensors = [one["codec"] for one in stored]
    if codec == "lowrank":
        matrices = [one["codec"] for one in stored if len(one["shape"]) == 2]
        exact = sum(kind in ("sparse", "raw") for kind in matrices)
        if exact:
            say(
                f"note: {exact} of {len(matrices) - matrices.count('same')} matrices that differ "
                f"are stored whole, because their change is of no low rank: the directions of "
                f"{energy:g} of its sum of squares are no smaller; a smaller --energy keeps fewer"
            )
    return {
        "pack": str(out),
        **about,
        "codecs": {kind: tensors.count(kind) for kind in sorted(set(tensors))},
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "bytes_of_checkpoint": sum(file.stat().st_size for file in checkpoint.whole.files),
    }


def _write(
    folder: Path, base: Model, checkpoint: Checkpoint, codec: Codec, energy: float
) -> dict[str, Any]:
    """Write the files of a pack, and return what pack.json says.

    Raises:
        NotFiniteError: a low rank cannot be found, because weights are not finite.
    """
    whole = checkpoint.whole
    assert whole is not None
    with opened(base, [checkpoint]):
        packer = Packer(base.tensors, whole, codec, energy)
        coded: dict[str, Coded] = {}
        layout: dict[str, Any] = {}
        for place in base.places():
            try:
                kind, parts = packer.layout(place.tensor)
            except RuntimeError as error:  # of torch.linalg.svd
                raise NotFiniteError(
                    f"{checkpoint.name}: its {place.tensor} has values that are infinite or not "
                    "numbers; check how it was trained"
                ) from error
            stored = whole.stored[place.tensor]
            coded[place.tensor] = Coded(kind, stored.shape, stored.dtype)
            layout |= parts
        key = digest(sorted(base.hashes.items()), checkpoint.hashes, codec, energy)
        output = Output(folder, layout, key, single=PACKED)
        with output.open():
            facts = [packer.write(name, one.codec, output) for name, one in coded.items()]
        output.complete()
    about = about_pack(
        coded,
        facts,
        base_name=base.name,
        base_revision=base.revision,
        base=base.hashes,
        checkpoint=checkpoint.hashes,
        codec=codec,
        energy=energy if codec == "lowrank" else None,
        sha256=file_hash(folder / PACKED),
    )
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def _copy_head(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the head of an encoder, which is small, as it is."""
    if (checkpoint.folder / HEAD_WEIGHTS).is_file():
        shutil.copyfile(checkpoint.folder / HEAD_WEIGHTS, folder / HEAD_WEIGHTS)


def unpack(name: str, out: str | Path, base_name: str | None, say: Say) -> dict[str, Any]:
    """Restore a checkpoint from a pack and describe it. See `perdure.api.unpack`."""
    out = Path(out)
    check_new(out)
    checkpoint = open_model(name)
    packed = checkpoint.pack
    if packed is None:
        raise PerdureError(f"{name}: is no pack; `perdure pack` makes one")
    named = (base_name, None) if base_name else (packed.base_name, packed.base_revision)
    base = Model(*named, bare=checkpoint.has_head)
    for line in check(base, [checkpoint]):
        say(line)
    shapes = {
        tensor: (stored.shape, packed.coded[tensor].dtype if stored.is_float else stored.dtype)
        for tensor, stored in base.tensors.stored.items()
    }
    work = out.parent / f".{out.name}.unpacking"
    with writing(out), owned(work, out):
        output = Output(work / MODEL, shapes, key=digest(checkpoint.hashes))
        with opened(base, [checkpoint]), output.open():
            for tensor in sorted(shapes.keys() - output.done.keys()):
                for piece in pieces(shapes[tensor][0]):
                    values = base.tensors.read(tensor, piece)
                    if tensor in packed.coded:
                        values = packed.read(tensor, piece, values)
                    output.write(tensor, piece.offset, values)
                output.finish(tensor)
        output.complete()
        _copy_head(checkpoint, work / MODEL)
        types = {dtype for _, dtype in shapes.values() if dtype.is_floating_point}
        copy_beside(base, work / MODEL, types.pop() if len(types) == 1 else None)
        _publish(work / MODEL, out)
    remove(work)
    return {"model": str(out), "exact": packed.exact, "checkpoint": packed.checkpoint}


def _publish(folder: Path, out: Path) -> None:
    """Give a complete folder its name."""
    assert not (folder / JOURNAL).exists()
    publish(folder, out)
