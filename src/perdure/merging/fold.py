"""The fold of a rule over one tensor of several checkpoints, in pieces that are always the same.

The size of the pieces does not depend on the memory that there is, so neither do the results.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from perdure.merging.rule import Arrival, Arrived, Place, Rule, State


PIECE = 1 << 18  # elements


class Piece(NamedTuple):
    """A part of a tensor that is contiguous in memory.

    Args:
        index: what indexes the part: integers, then at most one slice. Empty for all of it.
        offset: how many elements of the tensor stand before it.
        count: the number of its elements.
    """

    index: tuple[Any, ...]
    offset: int
    count: int


@dataclass(frozen=True)
class Source:
    """A checkpoint that arrives, as the fold over one tensor sees it.

    Args:
        identity: the hash of the checkpoint.
        arrived: its weight and norm.
        read: returns a piece of its task vector, given the piece and the base's weights there.
        statistic: returns what was measured of the checkpoint there (`Arrival.statistic`).
    """

    identity: str
    arrived: Arrived
    read: Callable[[Piece, Tensor], Tensor]
    statistic: Callable[[Piece], Tensor | None] = lambda piece: None


def pieces(shape: Sequence[int], most: int = PIECE) -> Iterator[Piece]:
    """Cut a tensor into contiguous pieces of at most `most` elements, or of one row if it is more.

    A row is what a single index of the last but one dimension selects.
    """
    yield from _pieces(shape, most, (), 0)


def _pieces(
    shape: Sequence[int], most: int, index: tuple[Any, ...], offset: int
) -> Iterator[Piece]:
    count = prod(shape)
    if count <= most or not shape:
        yield Piece(index, offset, count)
        return
    row = prod(shape[1:])
    if row > most and len(shape) > 2:
        for number in range(shape[0]):
            yield from _pieces(shape[1:], most, (*index, number), offset + number * row)
        return
    rows = max(1, most // row)
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        yield Piece((*index, part), offset + start * row, (part.stop - part.start) * row)


def fold(
    rule: Rule,
    place: Place,
    base: Callable[[Piece], Tensor],
    sources: Sequence[Source],
    earlier: int = 0,
    state: Callable[[Piece], State] = lambda piece: {},
    most: int = PIECE,
    removes: bool = False,
    observe: Callable[[State, Tensor, Arrival, State], None] | None = None,
) -> Iterator[tuple[Piece, Tensor, State]]:
    """Fold checkpoints into one tensor, and yield each piece with the base's weights and the state.

    Args:
        rule: the rule.
        place: the tensor.
        base: returns a piece of the base's weights, in the rule's data type.
        sources: the checkpoints, in the order of their arrival.
        earlier: how many checkpoints have arrived before them.
        state: returns the state of a piece before they arrive.
        most: the most elements of a piece, if the rule does not need whole tensors.
        removes: take the checkpoints, which have arrived, out of the state instead.
        observe: called with the state before the last checkpoint, its task vector, what is known of
            it, and the state after it.
    """
    cut = list(pieces(place.shape, prod(place.shape) if rule.whole else most))
    arrivals: list[Arrival] = []

    def folded(piece: Piece, weights: Tensor, arrived: Sequence[Source]) -> State:
        """Return the state of a piece after the first checkpoints have arrived."""
        after = state(piece)
        for source, arrival in zip(arrived, arrivals, strict=True):
            tau = source.read(piece, weights)
            known = replace(
                arrival,
                offset=piece.offset,
                base=weights if rule.needs_base else None,
                statistic=source.statistic(piece),
            )
            before = after
            after = (rule.undo if removes else rule.arrive)(before, tau, known)
            if observe is not None and source is sources[-1]:
                observe(before, tau, known, after)
        return after

    for number, source in enumerate(sources, start=earlier + 1):
        arrival = Arrival(
            number=number,
            weight=source.arrived.weight,
            identity=source.identity,
            tensor=place.tensor,
            shape=place.shape,
            role=place.role,
            transposed=place.transposed,
        )

        def whole(source: Source = source) -> Iterator[Tensor]:
            return (source.read(piece, base(piece)) for piece in cut)

        def pasts(source: Source = source) -> Iterator[tuple[State, Tensor, Tensor]]:
            before = sources[: len(arrivals)]
            for piece in cut:
                weights = base(piece)
                yield folded(piece, weights, before), source.read(piece, weights), weights

        seen = rule.look(whole, arrival) | rule.look_back(pasts, arrival)
        arrivals.append(replace(arrival, seen=seen))
    for piece in cut:
        weights = base(piece)
        yield piece, weights, folded(piece, weights, sources)
