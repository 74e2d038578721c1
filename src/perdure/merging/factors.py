"""LoRA adapters merged to one LoRA adapter, without forming a matrix of the base's size.

A weighted sum of products is a product of concatenated factors, [c_1 s_1 B_1, ...] [A_1; ...]. Of
these, QR gives B = Q_b R_b and A^T = Q_a R_a, and the SVD of the small R_b R_a^T has the singular
values of the sum. Only what a cap of the rank cuts off is lost, and that is reported.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from perdure.errors import NotFiniteError, PerdureError, one_line
from perdure.merging.adapter import FACTORS, PREFIX, Adapter
from perdure.merging.fold import PIECE
from perdure.merging.layers import Layers
from perdure.merging.observed import Facts, compared
from perdure.merging.treatment import Treatment


FULL = "give --full to write a whole model"
DOWNS = tuple(FACTORS)
UPS = tuple(up for up, _ in FACTORS.values())


@dataclass(frozen=True)
class Factors:
    """The factors of one module, whose product B A is a change of its weights.

    Args:
        up: B, of shape [d_out, r], in fp64.
        down: A, of shape [r, d_in], in fp64.
        names: the names of B and A in PEFT's files.
    """

    up: Tensor
    down: Tensor
    names: tuple[str, str]


@dataclass(frozen=True)
class MergedAdapter:
    """Merged adapters.

    Args:
        tensors: the tensors of the adapter, as PEFT names them.
        rank: the rank of each module.
        discarded: the share of the sum of squares that was cut off, of all modules together.
        worst: the same of the module that lost most.
        norm: the Frobenius norm of the merged change.
    """

    tensors: dict[str, Tensor]
    rank: int
    discarded: float
    worst: float
    norm: float


def sums(adapters: Sequence[Adapter], coefficients: Sequence[float]) -> dict[str, Factors]:
    """Return the weighted sum of adapters, by module; their files must be open.

    Raises:
        PerdureError: two adapters have a module in different forms.
    """
    total: dict[str, Factors] = {}
    for adapter, coefficient in zip(adapters, coefficients, strict=True):
        for name, module in adapter.modules.items():
            down, up = adapter.factors(module, torch.float64)
            factors = Factors(
                up=coefficient * module.scaling * up,
                down=down,
                names=(_peft_name(module.up), _peft_name(module.down)),
            )
            total[name] = added(total.get(name), factors, str(adapter.folder))
    return total


def scaled(
    total: Mapping[str, Factors], after: Sequence[Treatment], layers: Layers
) -> dict[str, Factors]:
    """Return a sum of adapters after treatments that only scale.

    Args:
        total: the sum (`sums`).
        after: the treatments.
        layers: the numbered layers of the base.
    """
    result = {}
    for name, factors in total.items():
        depth = layers.depth(f"{name}.weight")
        factor = math.prod(treatment.factor(depth) for treatment in after)
        result[name] = replace(factors, up=factor * factors.up) if after else factors
    return result


def added(one: Factors | None, other: Factors, where: str) -> Factors:
    """Return factors of the sum of two products.

    Raises:
        PerdureError: they are of different forms; the line begins with `where`.
    """
    if one is None:
        return other
    shapes = [(f.up.shape[0], f.down.shape[1], f.names) for f in (one, other)]
    if shapes[0] != shapes[1]:
        raise PerdureError(
            f"{where}: its {other.names[1]} is of another form than in what it is merged with; "
            "give adapters of one base"
        )
    up, down = torch.cat([one.up, other.up], dim=1), torch.cat([one.down, other.down])
    return Factors(up, down, one.names)


def balanced(factors: Factors) -> tuple[Factors, Tensor]:
    """Return the same product with orthogonal factors, and its singular values.

    Singular values that are only rounding are left out, so the rank is that of the product.
    """
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    eps = torch.finfo(s.dtype).eps * max(factors.up.shape[0], factors.down.shape[1])
    known = s > s[:1] * eps
    u, s, vh = u[:, known], s[known], vh[known]
    root = s.sqrt()
    up, down = (q_up @ u) * root, root[:, None] * (vh @ q_down.T)
    return Factors(up, down, factors.names), s


def check_only_factors(adapter: Adapter, name: str) -> None:
    """Check that an adapter has nothing but factors.

    Raises:
        PerdureError: it has biases or whole tensors as well.
    """
    other = next(iter({**adapter.replaced, **adapter.biases}), None)
    if other is not None:
        raise PerdureError(
            f"{name}: has {other} beside the factors of a LoRA adapter, which cannot be merged to "
            f"an adapter; {FULL}"
        )


def norms_and_cosines(adapters: Sequence[Adapter]) -> tuple[list[float], list[list[float]]]:
    """Return the norms of adapters' changes and the cosines between them; their files must be open.

    The inner product of two changes is that of B_1^T B_2 and A_1 A_2^T, which are small.

    Raises:
        NotFiniteError: a factor is infinite or not a number; the line names it.
    """
    count = len(adapters)
    gram = torch.zeros(count, count, dtype=torch.float64)
    read: list[dict[str, tuple[Tensor, Tensor]]] = []
    for adapter in adapters:
        read.append({})
        for name, module in adapter.modules.items():
            down, up = adapter.factors(module, torch.float64)
            if not (down.isfinite().all() and up.isfinite().all()):
                raise NotFiniteError(
                    f"{adapter.folder}: its factors of {name} have values that are infinite or not "
                    "numbers; restore its files from where they came from, or give another one"
                )
            read[-1][name] = down, module.scaling * up
    for i, one in enumerate(read):
        for j, other in enumerate(read):
            for name in one.keys() & other.keys():
                (down, up), (other_down, other_up) = one[name], other[name]
                gram[i, j] += ((up.T @ other_up) * (down @ other_down.T)).sum()
    norms = gram.diagonal().clamp_min(0).sqrt()
    cosines = gram / norms.outer(norms).clamp_min(1e-300)
    rounded = [[round(value, 4) for value in row] for row in cosines.tolist()]
    return norms.tolist(), rounded


def compressed(
    total: Mapping[str, Factors],
    cap: int | None,
    dtype: torch.dtype,
    scaling: float = 1.0,
    fill: Mapping[str, Tensor] | None = None,
) -> MergedAdapter:
    """Return a sum of adapters as one adapter, of one rank for all modules.

    Args:
        total: the sum (`sums`).
        cap: the highest rank; None keeps all of the sum.
        dtype: the data type of the factors.
        scaling: by what the adapter's settings multiply B A.
        fill: the tensors of an adapter. The result then has the rank `cap` and all of its modules.
            Where less is enough, rows of its A stay and those of B are zero, so that training can
            go on there.
    """
    products = {name: balanced(factors) for name, factors in total.items()}
    needed = max((len(s) for _, s in products.values()), default=0)
    rank = cap if fill and cap else max(1, min(needed, cap or needed))
    tensors: dict[str, Tensor] = {}
    for name, tensor in (fill or {}).items():
        kept = tensor.to(torch.float64)
        is_down = name.endswith(DOWNS)
        tensors[name] = _rows(kept, rank) if is_down else torch.zeros(len(kept), rank)
    energy = cut = worst = 0.0
    for factors, s in products.values():
        of_module, lost = s.square().sum().item(), s[rank:].square().sum().item()
        energy, cut = energy + of_module, cut + lost
        worst = max(worst, lost / of_module if of_module else 0.0)
        count = min(rank, len(s))
        up = torch.zeros(factors.up.shape[0], rank, dtype=torch.float64)
        down = torch.zeros(rank, factors.down.shape[1], dtype=torch.float64)
        up[:, :count] = factors.up[:, :count] / scaling
        if fill:
            down.copy_(tensors[factors.names[1]])
        down[:count] = factors.down[:count]
        for own, value in zip(factors.names, (up, down), strict=True):
            tensors[own] = value
    return MergedAdapter(
        tensors={name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        rank=rank,
        discarded=cut / energy if energy else 0.0,
        worst=worst,
        norm=(energy - cut) ** 0.5,
    )


def facts_of(before: Mapping[str, Factors], arrival: Mapping[str, Factors]) -> dict[str, Facts]:
    """Return what `observed.interference` needs of each module of two sums.

    The products are formed in pieces of rows, not as whole matrices.
    """
    facts: dict[str, Facts] = {}
    for name in sorted(before.keys() | arrival.keys()):
        parts = [total[name] for total in (arrival, before) if name in total]
        sums: Counter[str] = Counter()
        width = parts[0].down.shape[1]
        step = max(1, PIECE // width)
        for start in range(0, len(parts[0].up), step):
            tau, merged = (
                total[name].up[start : start + step] @ total[name].down
                if name in total
                else torch.zeros(len(parts[0].up[start : start + step]), width).double()
                for total in (arrival, before)
            )
            sums.update(compared(tau, merged))
        facts[name] = sums
    return facts


def distance(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> float:
    """Return the Frobenius norm of the difference of two sums."""
    square = 0.0
    for name in one.keys() | other.keys():
        parts = [total[name] for total in (one, other) if name in total]
        signs = [1.0, -1.0] if len(parts) == 2 else [1.0]
        up = torch.cat([s * part.up for s, part in zip(signs, parts, strict=True)], dim=1)
        down = torch.cat([part.down for part in parts])
        r_up, r_down = torch.linalg.qr(up)[1], torch.linalg.qr(down.T)[1]
        square += (r_up @ r_down.T).square().sum().item()
    return square**0.5


def _rows(down: Tensor, rank: int) -> Tensor:
    """Return `rank` rows of A, again from the first if it has fewer."""
    return down[torch.arange(rank) % len(down)]


def _peft_name(own: str) -> str:
    """Return the name of a factor in PEFT's files, whether or not its file has PEFT's prefix."""
    return own if own.startswith(PREFIX) else f"{PREFIX}{own}"


def tensors_of(total: Mapping[str, Factors], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the factors of a sum as tensors to store (`read_sum`)."""
    tensors = {}
    for factors in total.values():
        for name, value in zip(factors.names, (factors.up, factors.down), strict=True):
            tensors[name] = value.to(dtype).contiguous()
    return tensors


def read_sum(file: Path, ratio: float) -> dict[str, Factors]:
    """Return a sum that was stored, multiplied by `ratio`.

    Raises:
        PerdureError: the file is damaged.
    """
    try:
        tensors = load_file(file)
        total = {}
        for name, down in tensors.items():
            if not name.endswith(DOWNS):
                continue
            module = module_of(name)
            down_end = next(end for end in DOWNS if name.endswith(end))
            up_name = f"{name.removesuffix(down_end)}{FACTORS[down_end][0]}"
            up = ratio * tensors[up_name].to(torch.float64)
            total[module] = Factors(up, down.to(torch.float64), (up_name, name))
        return total
    except (OSError, LookupError, SafetensorError) as error:
        raise PerdureError(f"{file}: does not load ({one_line(error)})") from error


def module_of(name: str) -> str:
    """Return the module of a factor's name in PEFT's files."""
    path = name.removeprefix(PREFIX)
    for end in (*DOWNS, *UPS):
        path = path.removesuffix(f".{end}")
    return path


def settings_of(adapters: Sequence[Adapter], rank: int, base: str) -> dict[str, Any]:
    """Return the settings of a merged adapter, whose scaling is 1.

    Raises:
        PerdureError: the adapters' weights are stored in different forms.
    """
    first = adapters[0].settings
    names = sorted({name for adapter in adapters for name in adapter.modules})
    return {
        **first,
        "base_model_name_or_path": base,
        "revision": None,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": names,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
        "inference_mode": True,
        "bias": "none",
        "lora_bias": False,
        "modules_to_save": None,
    }
