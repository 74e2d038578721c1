"""Checkpoints merged into the files of one model, tensor by tensor, within a limit of memory."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.errors import NotFiniteError, PerdureError
from perdure.merging.checkpoint import Tensors
from perdure.merging.fold import PIECE, Piece, Source, fold, pieces
from perdure.merging.magnitude import dot, is_finite
from perdure.merging.model import Checkpoint, Model, opened
from perdure.merging.observed import Observer, interference, rounding
from perdure.merging.output import Output
from perdure.merging.rule import Arrived, Place, Rule, State
from perdure.merging.survey import Survey
from perdure.merging.treatment import Treatment, values_of
from perdure.merging.union import Widened
from perdure.models.layout import MERGE_STATE
from perdure.seeds import digest


BUFFERS = 32_000_000  # bytes for what does not depend on the tensors
# The folders of a merge: the model, a merged task vector that is scaled at the end, the state.
MODEL, VECTOR, STATE = "model", "vector", "state"


@dataclass(frozen=True)
class MergePlan:
    """What a merge reads, holds in memory and writes, in bytes.

    Args:
        tensors: the number of tensors.
        read: what is read, all passes together.
        written: what is written.
        memory: the most memory for weights, beside Python and its libraries.
        largest: the tensor that needs it.
    """

    tensors: int
    read: int
    written: int
    memory: int
    largest: str

    def line(self) -> str:
        """Return the plan in words."""
        return (
            f"plan: {self.tensors} tensors; reads {in_bytes(self.read)}, writes "
            f"{in_bytes(self.written)}, and takes at most {in_bytes(self.memory)} of memory for "
            f"weights (for {self.largest})"
        )


@dataclass(frozen=True)
class Job:
    """What is merged, and how.

    Args:
        base: the base.
        checkpoints: the checkpoints, in the order of their arrival.
        rule: the rule.
        survey: their norms and cosines, None before they are known.
        dtype: the data type of what is written; None is that of the base's tensors.
        history: the arrivals before these checkpoints.
        state: the state after them, None if there were none.
        after: the treatments of the merged task vector, in their order.
        removes: which arrival of the history is taken out of the state, counted from 0; the only
            checkpoint is the one that had arrived then. None if checkpoints arrive.
    """

    base: Model
    checkpoints: list[Checkpoint]
    rule: Rule
    survey: Survey | None = None
    dtype: torch.dtype | None = None
    history: Sequence[Arrived] = ()
    state: Tensors | None = None
    after: tuple[Treatment, ...] = ()
    removes: int | None = None

    @property
    def arrived(self) -> list[Arrived]:
        """The arrivals in the state at the end."""
        if self.removes is not None:
            return [*self.history[: self.removes], *self.history[self.removes + 1 :]]
        assert self.survey is not None
        pairs = zip(self.checkpoints, self.survey.norms, strict=True)
        return [*self.history, *(Arrived(c.weight, norm) for c, norm in pairs)]

    @property
    def key(self) -> str:
        """The hash of everything that decides the result."""
        return digest(
            self.rule.name,
            asdict(self.rule),
            sorted(self.base.hashes.items()),
            [c.key for c in self.checkpoints],
            [[a.weight, a.norm] for a in self.history],
            str(self.dtype),
            PIECE,
            *([values_of(self.after)] if self.after else []),
            *([] if self.removes is None else [self.removes]),
        )

    def is_whole(self, place: Place) -> bool:
        """Return whether a tensor is merged as a whole, not in pieces."""
        treated_whole = place.role == "matrix" and any(one.whole for one in self.after)
        return self.rule.whole or treated_whole

    def pieces(self, place: Place) -> list[Piece]:
        """Return the pieces in which a tensor is merged."""
        return list(pieces(place.shape, prod(place.shape) if self.is_whole(place) else PIECE))

    def treated(self, tau: Tensor, base: Tensor, place: Place) -> Tensor:
        """Return a merged task vector after all treatments (`Treatment.treat`)."""
        for treatment in self.after:
            tau = treatment.treat(tau, base, place)
        return tau

    def dtype_of(self, place: Place) -> torch.dtype:
        """Return the data type in which a tensor is written."""
        return self.dtype or self.base.tensors.stored[place.tensor].dtype


def plan(job: Job, keeps_state: bool = False) -> MergePlan:
    """Return what a merge takes, before it begins."""
    rule, base = job.rule, job.base
    size = rule.dtype.itemsize
    needs: dict[str, int] = {}
    indices = sum(c.alignment.memory for c in job.checkpoints if c.alignment is not None)
    elements = 0
    for place in base.places():
        count = prod(place.shape)
        elements += count
        cut = [piece.count for piece in job.pieces(place)]
        # Rules that need whole tensors work hard only on matrices, as OPCM does with its SVD.
        work = rule.work if place.role == "matrix" or not rule.whole else Rule.work
        if place.role == "matrix":
            work = max([work, *(treatment.work for treatment in job.after)])
        observed = 3 * len(rule.state) + 4 if keeps_state else 0  # what `Observer` compares
        held = max(cut, default=0) * size * (2 * len(rule.state) + work + 2 + observed)
        held += rule.beside(place) * size
        held += _of_new_tokens(job, place) * max(cut, default=0)
        # What is freed of pieces is not given back at once; whole tensors are.
        held *= 1 if job.is_whole(place) else 2
        needs[place.tensor] = held + _factors(job, place, size) + BUFFERS + indices
    largest = max(needs, key=lambda name: needs[name])
    stored = sum(_size(base.tensors, name) for name in base.tensors.stored)
    inputs = sum(
        _size(tensors, name)
        for tensors in (tensors for c in job.checkpoints for tensors in c.read_from)
        for name in tensors.stored
    )
    # A survey and the fold, and what the rule looks at before it: `kth_largest` reads twice, and
    # what was merged before each checkpoint but the first is folded again.
    passes = 2 + 2 * (type(rule).look is not Rule.look)
    if type(rule).look_back is not Rule.look_back:
        passes += len(job.checkpoints) - (not job.history)
    written = elements * job.dtype.itemsize if job.dtype else stored
    written += elements * size * rule.rescales
    if keeps_state:
        shapes = [rule.shape_of(k, place) for place in base.places() for k in rule.state]
        written += size * sum(map(prod, shapes))
    return MergePlan(
        tensors=len(base.tensors.stored),
        read=passes * (stored + inputs),
        written=written,
        memory=needs[largest],
        largest=largest,
    )


def check_memory(made: MergePlan, job: Job, limit: int | None) -> None:
    """Check that a plan stays within a limit of memory.

    Raises:
        PerdureError: it does not; the line says how much it needs.
    """
    if limit is None or made.memory <= limit:
        return
    whole = next((one.name for one in (job.rule, *job.after) if one.whole), None)
    reason = f"{whole} needs whole tensors" if whole else "a piece of a tensor is the least"
    hint = ""
    if job.rule.whole:
        hint = ", or take a rule that works in pieces, such as task_arithmetic"
    elif whole:
        hint = f", or leave --after {whole} out"
    raise PerdureError(
        f"merging takes {in_bytes(made.memory)} of memory for {made.largest}, and max_memory is "
        f"{in_bytes(limit)}; {reason}, so allow more{hint}"
    )


def _factors(job: Job, place: Place, size: int) -> int:
    """Return the memory of the largest factors of adapters and packs for a tensor."""
    stored = [c.pack.tensors.stored for c in job.checkpoints if c.pack is not None]
    parts = [
        [tensors[f"{part}.{place.tensor}"].shape for part in ("up", "down")]
        for tensors in stored
        if f"up.{place.tensor}" in tensors
    ]
    adapters = [c.adapter for c in job.checkpoints if c.adapter is not None]
    name = place.tensor.removesuffix(".weight")
    modules = [(a, a.modules[name]) for a in adapters if name in a.modules]
    parts += [[a.stored[part].shape for part in (m.down, m.up)] for a, m in modules]
    return max((2 * size * sum(map(prod, shapes)) for shapes in parts), default=0)


def _of_new_tokens(job: Job, place: Place) -> int:
    """Return the bytes for each element of a piece beside what all tensors need.

    Rows of new tokens are read in the data type of a checkpoint, and summed in fp32.
    """
    tensors = job.base.tensors
    return 16 if isinstance(tensors, Widened) and place.tensor in tensors.axes else 0


def _size(tensors: Tensors, name: str) -> int:
    stored = tensors.stored[name]
    return prod(stored.shape) * stored.dtype.itemsize


class Outputs:
    """The folders of a merge: the model, and what else it writes.

    Args:
        job: what is merged.
        folder: the folder of them all.
        keep_state: whether the rule's state is written.
    """

    def __init__(self, job: Job, folder: Path, keep_state: bool):
        rule, key = job.rule, digest(job.key, keep_state)
        places = list(job.base.places())
        shapes = {
            name: (stored.shape, job.dtype if job.dtype and stored.is_float else stored.dtype)
            for name, stored in job.base.tensors.stored.items()
        }
        self.model = Output(folder / MODEL, shapes, key)
        self.state: Output | None = None
        self.vector: Output | None = None
        if keep_state:
            states = {
                f"{kind}.{place.tensor}": (rule.shape_of(kind, place), rule.dtype)
                for place in places
                for kind in (*rule.state, *rule.scalars)
            }
            self.state = Output(folder / STATE, states, key, single=MERGE_STATE)
        if rule.rescales:
            vectors = {place.tensor: (place.shape, rule.dtype) for place in places}
            self.vector = Output(folder / VECTOR, vectors, key, single=f"{VECTOR}.safetensors")

    @property
    def all(self) -> list[Output]:
        return [output for output in (self.model, self.state, self.vector) if output]


def merge_into(job: Job, folder: Path, keep_state: bool = False) -> dict[str, Any]:
    """Write the merged weights, as the files of a model, into the folder `model` of a folder.

    If a process that did the same was stopped, what it has written is not computed again.

    Args:
        job: what is merged, after its survey.
        folder: the folder, which belongs to this merge alone.
        keep_state: whether to write the rule's state as well, as `state/merge.safetensors`, and to
            measure what one more arrival does to it.

    Returns:
        `norm`, the Frobenius norm of the merged task vector, and `scale`, by which it was
        multiplied at the end; if there are treatments, `treated_norm`, the norm after them. With
        `keep_state` also `rounding`, the norm of what was rounded off the sums in the state, if the
        rule has such, and `interference`, that of the last checkpoint with what was merged before
        it, if there was something.

    Raises:
        NotFiniteError: a merged weight does not fit the data type.
    """
    outputs = Outputs(job, folder, keep_state)
    first = outputs.vector or outputs.model
    with opened(job.base, job.checkpoints), ExitStack() as stack:
        if job.state is not None:
            stack.enter_context(job.state.open())
        for output in outputs.all:
            stack.enter_context(output.open())
        _copy_buffers(job.base, outputs.model)
        for place in job.base.places():
            if place.tensor not in first.done:
                _merge_tensor(job, place, first, outputs.state)
        norm = math.sqrt(sum(first.done[p.tensor]["square"] for p in job.base.places()))
        scale = job.rule.scale_of(job.arrived, norm) if job.arrived else 1.0
        facts = {place.tensor: first.done[place.tensor] for place in job.base.places()}
        if outputs.vector is not None:
            _add_vector(job, outputs.model, outputs.vector, scale)
    for output in outputs.all:
        output.complete()
    measured: dict[str, Any] = {}
    if job.after:
        squares = [outputs.model.done[place.tensor]["treated"] for place in job.base.places()]
        measured["treated_norm"] = math.sqrt(sum(squares))
    if keep_state and job.rule.can_undo:
        measured["rounding"] = rounding(facts.values())
    if found := interference(facts):
        measured["interference"] = found
    return {"norm": norm * scale, "scale": scale, **measured}


def _copy_buffers(base: Model, output: Output) -> None:
    """Copy the tensors that are no weights, which are the same in all checkpoints."""
    for name, stored in sorted(base.tensors.stored.items()):
        if stored.is_float or name in output.done:
            continue
        for piece in pieces(stored.shape):
            output.write(name, piece.offset, base.tensors.read(name, piece))
        output.finish(name)


def _merge_tensor(job: Job, place: Place, first: Output, state_output: Output | None) -> None:
    """Fold all checkpoints into one tensor, and write it.

    Args:
        job: what is merged.
        place: the tensor.
        first: where the merged weights are written, or the merged task vector if it is scaled
            at the end.
        state_output: where the state is written, if it is.
    """
    rule, name = job.rule, place.tensor
    is_vector = rule.rescales
    dtype = rule.dtype if is_vector else job.dtype_of(place)
    untouched = job.state is None and not any(c.changes(name) for c in job.checkpoints)
    if untouched and state_output is None and not is_vector:
        for piece in pieces(place.shape):
            first.write(name, piece.offset, job.base.tensors.read(name, piece).to(dtype))
        first.finish(name, square=0.0, treated=0.0)
        return
    square = treated = 0.0
    observer = _observer(job) if state_output is not None or job.removes is not None else None
    for piece, weights, state in _folded(job, place, observer):
        tau = rule.merged(state, job.arrived) if job.arrived else torch.zeros_like(weights)
        square += dot(tau, tau)
        if job.after and not is_vector:
            tau = job.treated(tau, weights, place)
            treated += dot(tau, tau)
        values = tau if is_vector else (weights + tau).to(dtype)
        if state_output is not None:
            for kind, tensor in state.items():
                state_output.write(f"{kind}.{name}", piece.offset, tensor)
        _write(first, name, piece, values)
    if state_output is not None:
        for kind in (*rule.state, *rule.scalars):
            state_output.finish(f"{kind}.{name}")
    first.finish(name, square=square, treated=treated, **(observer.facts if observer else {}))


def _observer(job: Job) -> Observer:
    """Return what measures the last checkpoint in one tensor."""
    if job.removes is not None:
        return Observer(job.rule, job.history, removes=True)
    return Observer(job.rule, job.arrived[:-1])


def _folded(
    job: Job, place: Place, observer: Observer | None
) -> Iterator[tuple[Piece, Tensor, State]]:
    """Fold the checkpoints into a tensor (`fold`)."""
    rule, stored, name = job.rule, job.state, place.tensor

    def base(piece: Piece) -> Tensor:
        return job.base.tensors.read(name, piece).to(rule.dtype)

    def state(piece: Piece) -> State:
        if stored is None:
            return {}
        parts = {}
        for kind in (*rule.state, *rule.scalars):
            in_pieces = rule.shape_of(kind, place) == place.shape
            parts[kind] = stored.read(f"{kind}.{name}", piece if in_pieces else None)
        return parts

    removes, earlier = job.removes, len(job.history)
    if removes is None:
        arrivals = job.arrived[earlier:]
    else:
        arrivals, earlier = [job.history[removes]], removes
    sources = [
        Source(
            identity=checkpoint.identity,
            arrived=arrived,
            read=partial(checkpoint.tau, name),
            statistic=partial(checkpoint.statistic, name, dtype=rule.dtype),
        )
        for checkpoint, arrived in zip(job.checkpoints, arrivals, strict=True)
    ]
    return fold(
        rule,
        place,
        base,
        sources,
        earlier=earlier,
        state=state,
        most=prod(place.shape) if job.is_whole(place) else PIECE,
        removes=removes is not None,
        observe=observer.see if observer else None,
    )


def towards(
    job: Job, checkpoint: Checkpoint, place: Place
) -> Iterator[tuple[Piece, Tensor, Tensor]]:
    """Yield the weights of what a job merges, and how a checkpoint differs from them.

    Args:
        job: what was merged so far, maybe nothing; its files and those of the checkpoint are open.
        checkpoint: the checkpoint.
        place: the tensor.
    """
    nothing = job.state is None and not job.checkpoints
    for piece, weights, state in _folded(job, place, observer=None):
        tau = checkpoint.tau(place.tensor, piece, weights)
        merged = torch.zeros_like(tau) if nothing else job.rule.merged(state, job.arrived)
        yield piece, weights + merged, tau - merged


def _add_vector(job: Job, output: Output, vector: Output, scale: float) -> None:
    """Write the base's weights plus the merged task vector times `scale`."""
    tensors = Tensors(list(vector.files))
    with tensors.open():
        for place in job.base.places():
            if place.tensor in output.done:
                continue
            treated = 0.0
            cut = job.pieces(place) if job.after else pieces(place.shape)
            for piece in cut:
                weights = job.base.tensors.read(place.tensor, piece).to(job.rule.dtype)
                tau = scale * tensors.read(place.tensor, piece)
                if job.after:
                    tau = job.treated(tau, weights, place)
                    treated += dot(tau, tau)
                _write(output, place.tensor, piece, (weights + tau).to(job.dtype_of(place)))
            output.finish(place.tensor, treated=treated)


def _write(output: Output, name: str, piece: Piece, values: Tensor) -> None:
    """Write a piece of a merged tensor.

    Raises:
        NotFiniteError: it does not fit the data type.
    """
    if not is_finite(values):
        kind = str(values.dtype).removeprefix("torch.")
        raise NotFiniteError(
            f"{name}: the merged weights do not fit {kind}; give another --dtype, or a smaller "
            "scale or weight"
        )
    output.write(name, piece.offset, values)


def in_bytes(count: float) -> str:
    """Return a number of bytes in words, such as `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
