"""Which weights are important to a task: pure functions on flat buffers.

All trainable weights are stored one after the other in one flat buffer of n values, so that one
threshold applies to all of them. What is computed for all n weights is computed in pieces of the
buffer: a piece stays in the cache from one kernel to the next, and temporary tensors have the size
of a piece for any n. A piece of many small tensors needs as few kernels as one of a large tensor.

The mathematics is that of Recurrent-KIF, https://huggingface.co/papers/2502.17510. The functions do
not depend on models, optimizers or rounds.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from perdure.models.sharded import Shards, local


ScoreKind = Literal["sensitivity", "sensitivity_uncertainty"]

ALONE = Shards(())  # the weights are not sharded

# How many values a piece has. On a CPU, the pieces of four buffers fit into the cache of a core.
CHUNK, CHUNK_OF_A_THREAD = 2**22, 2**18
LARGEST = torch.finfo(torch.float32).max
HALF = 16  # the bits of a 32-bit float that one histogram counts
LOWER_HALF, WITHOUT_SIGN = 0xFFFF, 0x7FFF
INFINITY = 0x7F80  # the upper half of its bits
ROWS = 32  # in which `_members` looks at the values of a piece


# --- between parameters and the flat buffer


@torch.no_grad()
def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """A new fp32 buffer with the values of all tensors, in order; of sharded ones, its own part."""
    return torch.cat([local(tensor).reshape(-1) for tensor in tensors]).float()


@torch.no_grad()
def flatten_gradients(parameters: Sequence[Tensor]) -> Tensor:
    """A new fp32 buffer with the gradients of all parameters, in order; None becomes zeros."""
    return flatten([_zeros(local(p)) if p.grad is None else p.grad for p in parameters])


def _zeros(like: Tensor) -> Tensor:
    """Zeros of the shape of `like` that take no memory."""
    return like.new_zeros(1).expand(like.shape)


@torch.no_grad()
def write_back(flat: Tensor, parameters: Sequence[Tensor]) -> None:
    """Copy the buffer into the parameters in place; they keep their dtype and their storage."""
    own = [local(parameter) for parameter in parameters]
    pieces = flat.split([part.numel() for part in own])
    shaped = [piece.view(part.shape) for piece, part in zip(pieces, own, strict=True)]
    torch._foreach_copy_(own, shaped)  # pyright: ignore[reportPrivateImportUsage]


class Part(NamedTuple):
    """The values of one tensor that a piece has."""

    number: int  # of the tensor
    place: slice  # in the flattened tensor
    place_in_piece: slice


class Piece(NamedTuple):
    """A range of the flat buffer, and what the tensors have in it."""

    place: slice
    parts: list[Part]


def chunk_size(device: torch.device) -> int:
    """The number of values of a piece that is fast on this device."""
    return CHUNK_OF_A_THREAD * torch.get_num_threads() if device.type == "cpu" else CHUNK


def pieces_of(tensors: Sequence[Tensor], size: int, apart: bool = False) -> list[Piece]:
    """The pieces of the flat buffer of some tensors, all of `size` values but the last.

    With `apart`, large tensors share no piece with others, so that `read` need not copy them, and
    small ones are not cut: each is cut at the same places whatever stands before it. More pieces
    then have fewer values.
    """
    pieces, begin, used = [], 0, size
    for number, tensor in enumerate(tensors):
        is_apart = apart and tensor.numel() * 4 > size
        begins_piece = is_apart or (apart and used + tensor.numel() > size)
        used = size if begins_piece else used
        done = 0
        while done < tensor.numel():
            if used == size:
                pieces.append(Piece(slice(begin, begin), []))
                used = 0
            count = min(tensor.numel() - done, size - used)
            part = Part(number, slice(done, done + count), slice(used, used + count))
            pieces[-1].parts.append(part)
            done, begin, used = done + count, begin + count, used + count
            pieces[-1] = pieces[-1]._replace(place=slice(pieces[-1].place.start, begin))
        used = size if is_apart else used
    return pieces


def read(tensors: Sequence[Tensor], piece: Piece, out: Tensor) -> Tensor:
    """The fp32 values of a piece: in `out`, or where they are if one tensor has all of them."""
    parts = [tensors[number].detach().reshape(-1)[place] for number, place, _ in piece.parts]
    if len(parts) == 1 and parts[0].dtype == torch.float32 and parts[0].is_contiguous():
        return parts[0]
    return torch.cat(parts, out=out[: piece.place.stop - piece.place.start])


@torch.no_grad()
def write(values: Tensor, tensors: Sequence[Tensor], piece: Piece) -> None:
    """Copy the values of a piece into the tensors; they keep their dtype and their storage."""
    copied = {}
    for number, place, place_in_piece in piece.parts:
        flat = tensors[number].detach().reshape(-1)  # a copy if the tensor is not contiguous
        copied[number] = (flat, flat[place], values[place_in_piece])
    torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
        [target for _, target, _ in copied.values()], [source for *_, source in copied.values()]
    )
    for number, (flat, *_) in copied.items():
        if not tensors[number].is_contiguous():
            tensors[number].copy_(flat.view(tensors[number].shape))


# --- importance


class Importance(NamedTuple):
    """Smoothed values for each weight of a buffer; `uncertainty` is None if the score has none.

    The maps can have a lower precision than fp32, and be on another device than the weights. What
    is computed of a piece of them is computed in fp32 on the device of the weights.
    """

    sensitivity: Tensor
    uncertainty: Tensor | None

    @classmethod
    def zeros(cls, like: Tensor, kind: ScoreKind) -> "Importance":
        uncertain = kind == "sensitivity_uncertainty"
        return cls(torch.zeros_like(like), torch.zeros_like(like) if uncertain else None)


@torch.no_grad()
def update(
    state: Importance,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    beta_sensitivity: float,
    beta_uncertainty: float,
    shards: Shards = ALONE,
    bound: Tensor | None = None,
) -> bool:
    """Smooth the sensitivity of one more gradient into the maps, in place.

    The sensitivity of a weight is the first-order estimate of how much the loss changes if the
    weight is set to zero, so `weights` must be those at which the gradient was taken:

        I <- |w g|;  S <- b1 S + (1 - b1) I;  U <- b2 U + (1 - b2) |I - S|    (U sees the new S)

    Both maps start at zero without bias correction, because a common factor does not change a
    quantile mask.

    If any sensitivity is not finite, nothing is updated and False is returned; the check
    synchronizes once with the device.

    Args:
        state: the maps, of all weights in one flat buffer.
        weights: the parameters, of any shape and dtype; of sharded ones, this process's parts.
        gradients: one for each parameter; None counts as zeros.
        beta_sensitivity: b1.
        beta_uncertainty: b2.
        shards: if the weights are spread over several processes, all of them update, or none does.
        bound: no sensitivity is larger; by default, the product of both norms.
    """
    device = weights[0].device
    size = min(chunk_size(device), state.sensitivity.numel())
    weights = [local(weight.detach()) for weight in weights]
    pieces = pieces_of(weights, size, apart=True)
    given = [gradient if gradient is None else local(gradient) for gradient in gradients]
    dense = [_zeros(w) if g is None else g for w, g in zip(weights, given, strict=True)]
    w_piece, g_piece, sensitivity_piece = torch.empty(3, size, device=device).unbind()

    def sensitivity_of(piece: Piece) -> Tensor:
        w, g = read(weights, piece, w_piece), read(dense, piece, g_piece)
        return torch.mul(w, g, out=sensitivity_piece[: len(w)]).abs_()

    # If the bound is finite, so are all products, which are then computed only once.
    if bound is None:
        gradient_norm = get_total_norm([g for g in given if g is not None])
        bound = bound_of(get_total_norm(weights), gradient_norm)
    is_finite = bound.to(device).isfinite()
    if not is_finite:
        largest = [sensitivity_of(piece).amax() for piece in pieces]
        is_finite = torch.stack(largest).isfinite().all()
    if shards.most((~is_finite).float()):
        return False
    for piece in pieces:
        sensitivity = sensitivity_of(piece)
        _smooth(state, piece.place, sensitivity, beta_sensitivity, beta_uncertainty)
    return True


def bound_of(weight_norm: Tensor, gradient_norm: Tensor) -> Tensor:
    """A bound of |w g|, the product of the norms; these are rounded, hence the factor."""
    return 2 * weight_norm.float() * gradient_norm.to(weight_norm.device, torch.float32)


def _smooth(
    state: Importance,
    place: slice,
    sensitivity: Tensor,
    beta_sensitivity: float,
    beta_uncertainty: float,
) -> None:
    """Smooth the sensitivity of a piece, which is overwritten, into the maps."""
    stored = state.sensitivity[place]
    smoothed = stored.to(sensitivity).lerp_(sensitivity, 1 - beta_sensitivity)
    put(smoothed, stored)
    if state.uncertainty is not None:
        stored = state.uncertainty[place]
        deviation = sensitivity.sub_(smoothed).abs_()
        put(stored.to(deviation).lerp_(deviation, 1 - beta_uncertainty), stored)


def put(values: Tensor, stored: Tensor) -> None:
    """Copy values to where they are stored, if `Tensor.to` has made a copy of that."""
    if values is not stored:
        stored.copy_(values)


def score(state: Importance) -> Tensor:
    """S (the map itself, not a copy), or S U with an uncertainty, at most the largest float."""
    if state.uncertainty is None:
        return state.sensitivity
    return (state.sensitivity * state.uncertainty).clamp_max_(LARGEST)


def score_of(state: Importance, place: slice, device: torch.device) -> Tensor:
    """The score of a piece, in fp32 on this device."""
    sensitivity = state.sensitivity[place].to(device, torch.float32)
    if state.uncertainty is None:
        return sensitivity
    uncertainty = state.uncertainty[place].to(device, torch.float32)
    return (sensitivity * uncertainty).clamp_max_(LARGEST)


def threshold_of(
    state: Importance, q: float, device: torch.device, shards: Shards = ALONE
) -> Tensor:
    """The q-quantile of the scores, as `quantile_threshold` of `score`, in pieces."""
    n, size = state.sensitivity.numel(), chunk_size(device)
    places = [slice(begin, min(begin + size, n)) for begin in range(0, n, size)]
    pieces = [state.sensitivity.new_zeros(0, dtype=torch.float32, device=device)]  # of no shard

    def scores() -> Iterable[Tensor]:
        return (score_of(state, place, device) for place in places) if places else pieces

    return _exact_quantile(scores, q, shards)


def thresholds_of(
    state: Importance,
    q: float,
    device: torch.device,
    sizes: Sequence[int],
    shards: Shards = ALONE,
) -> Tensor:
    """The q-quantile of the scores of each parameter on its own, in the order of the buffer.

    Args:
        state: the maps.
        q: rank of the threshold among the scores of a parameter.
        device: the weights' device.
        sizes: how many values each parameter has in the buffer.
        shards: if the weights are spread over several processes, the thresholds are those of whole
            parameters.
    """
    ends = list(accumulate(sizes))
    thresholds = []
    for size, end in zip(sizes, ends, strict=True):
        place, uncertainty = slice(end - size, end), state.uncertainty
        part = Importance(
            state.sensitivity[place], None if uncertainty is None else uncertainty[place]
        )
        thresholds.append(threshold_of(part, q, device, shards))
    return torch.stack(thresholds)


# --- the mask


@torch.no_grad()
def quantile_threshold(scores: Tensor, q: float, shards: Shards = ALONE) -> Tensor:
    """The value at index floor(q (n - 1)) of the ascending scores, exactly, without sorting.

    This is the lower of the two neighbours between which `torch.quantile` interpolates. No score
    lies between the two, so `scores > threshold` is the same set for both, unless the interpolation
    rounds up to the upper neighbour (or that one is infinite). The index is computed exactly, from
    the decimal digits of q. `torch.quantile` rounds it to fp32, so that it can be off by one as n
    approaches its limit of 2^24. Here n has no limit.

    The bits of non-negative floats, read as integers, have the same order as the floats. So a
    histogram of the upper 16 bits finds the bin of the value, and a histogram of the lower 16 bits
    of that bin's members finds the value. Ties, denormals and infinities need no special treatment.
    `kthvalue` and numpy's `partition` are exact too, but slower (benchmarks/quantile.py), and both
    copy all n values.

    Args:
        scores: flat fp32 values >= 0; NaN and negative values raise ValueError.
        q: rank of the threshold among the scores, from 0 (the least) to 1 (the greatest).
        shards: if the scores are spread over several processes, adds up their histograms, so that
            all processes find the same threshold, that of all scores.

    Returns:
        The threshold, a 0-dimensional tensor on the scores' device.
    """
    return _exact_quantile(lambda: scores.split(chunk_size(scores.device)), q, shards)


@torch.no_grad()
def _exact_quantile(pieces: Callable[[], Iterable[Tensor]], q: float, shards: Shards) -> Tensor:
    """The threshold of scores that `pieces` returns twice, piece by piece; at least one piece."""
    # No small tensor is kept for each piece: it would keep the allocator from using the memory of a
    # piece again.
    upper_counts = least = None
    for scores in pieces():
        counts = torch.bincount(_upper_half(scores), minlength=2 ** (HALF - 1))
        if upper_counts is None or least is None:
            upper_counts, least = counts, scores.new_zeros(())
        else:
            upper_counts += counts
        least = torch.minimum(least, scores.amin()) if len(scores) else least  # NaN if there is one
    n = 0 if upper_counts is None else int(shards.sum(upper_counts).sum())
    if upper_counts is None or least is None or n == 0 or not 0 <= q <= 1:
        raise ValueError(f"need scores and 0 <= q <= 1, got {n} scores and q = {q}")
    if not least >= 0:
        raise ValueError("scores must be >= 0 and not NaN")
    upper, index = _bin_of(int(Fraction(str(q)) * (n - 1)), upper_counts)
    lower_counts = torch.zeros(2**HALF, dtype=torch.int64, device=upper_counts.device)
    for scores in pieces():
        members = _members(scores, upper)
        lower_counts += torch.bincount(members & LOWER_HALF, minlength=2**HALF)
    lower, _ = _bin_of(index, shards.sum(lower_counts))
    return _float_of((upper << HALF) + lower, lower_counts.device)


def _upper_half(scores: Tensor) -> Tensor:
    """The upper 16 bits without the sign, so that -0.0 counts as 0.0."""
    return (scores.view(torch.int32) >> HALF).bitwise_and_(WITHOUT_SIGN)


def _float_of(bits: int, device: torch.device) -> Tensor:
    return torch.tensor(bits, dtype=torch.int32, device=device).view(torch.float32)


def _members(scores: Tensor, upper: int) -> Tensor:
    """The bits of the scores whose upper half is `upper`.

    Few scores are members, and picking them from a mask of all takes longer than computing it. So
    the scores are first laid out in rows, and only the columns in which some score is near enough
    to the bin are looked at.
    """
    columns = len(scores) // ROWS
    table, rest = scores[: columns * ROWS].view(ROWS, columns), scores[columns * ROWS :]
    if columns and upper + 1 < INFINITY:
        low, high = (_float_of(half << HALF, scores.device) for half in (upper, upper + 1))
        # Every member is within high - low of low, also if the difference is rounded.
        near = (table - low).abs_().amin(0) <= high - low
        scores = torch.cat([table[:, near].reshape(-1), rest])
    return scores.view(torch.int32)[_upper_half(scores) == upper]


def _bin_of(index: int, counts: Tensor) -> tuple[int, int]:
    """The bin that holds the value of this rank, and the rank within that bin."""
    below = counts.cumsum(0)
    number = int(torch.searchsorted(below, index, right=True))
    return number, index - (int(below[number - 1]) if number else 0)


def above(scores: Tensor, threshold: Tensor) -> Tensor:
    """The mask of the scores above the threshold, or each above its own: -1 there and 0 elsewhere.

    In -1 all bits are set, so that masks are combined, and choose between floats, by operations on
    bits. On a CPU these are several times faster than those of bool. The bits of floats >= 0, read
    as integers, have the same order as the floats, so the sign of a difference tells which is
    larger.

    Args:
        scores: fp32 values >= 0, not NaN and not -0.0.
        threshold: fp32, one value or as many as scores.
    """
    return (threshold.view(torch.int32) - scores.view(torch.int32)).bitwise_right_shift_(31)


def bits_of(mask: Tensor) -> Tensor:
    """A mask of bool as `above` makes masks; one that it made is returned as it is."""
    return mask if mask.dtype == torch.int32 else mask.to(torch.int32).neg_()


def pack(mask: Tensor) -> Tensor:
    """A mask of n values (`above`) as ceil(n / 8) bytes; the rows of [8, n / 8] are the bits."""
    bits = torch.ones(8, 1, dtype=torch.int32, device=mask.device) << _eight(mask.device)
    rows = nn.functional.pad(mask, (0, -len(mask) % 8)).view(8, -1) & bits
    for half in (4, 2, 1):
        rows = rows[:half] | rows[half:]
    return rows[0].to(torch.uint8)


def unpack(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack`: a mask of n values."""
    rows = packed.to(torch.int32) << (31 - _eight(packed.device))  # the bit becomes the sign
    return rows.bitwise_right_shift_(31).view(-1)[:n]


def _eight(device: torch.device) -> Tensor:
    """0 to 7, as a column."""
    return torch.arange(8, dtype=torch.int32, device=device)[:, None]


def important(scores: Tensor, q: float) -> Tensor:
    """The mask of the scores above their q-quantile: about 1 - q of them, fewer with ties."""
    return scores > quantile_threshold(scores, q)


def unit_range(scores: Tensor) -> Tensor:
    """(scores - min) / (max - min), zeros if they are all equal."""
    return scaled(scores, *scores.aminmax())


def scaled(scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scores scaled to 0..1, of which `low` is the least of all and `high` the greatest."""
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)
