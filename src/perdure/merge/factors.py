"""LoRA adapters merged to one LoRA adapter, without forming a matrix of the base's size.

A weighted sum of products is a product of concatenated factors, [c_1 s_1 B_1, ...] [A_1; ...]. Of
these, QR gives B = Q_b R_b and A^T = Q_a R_a, and the SVD of the small R_b R_a^T has the singular
values of the sum. Only what a cap of the rank cuts off is lost, and that is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perdure.errors import NotFiniteError, PerdureError
from perdure.merge.adapter import PREFIX, Adapter, Module


FULL = "give --full to write a whole model"


@dataclass(frozen=True)
class Factors:
    """The factors of one module, whose product B A is the merged change.

    Args:
        up: B, of shape [d_out, r], in fp64.
        down: A, of shape [r, d_in], in fp64.
    """

    up: Tensor
    down: Tensor


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


def added(one: Factors | None, other: Factors) -> Factors:
    """Return factors of the sum of two products."""
    if one is None:
        return other
    return Factors(torch.cat([one.up, other.up], dim=1), torch.cat([one.down, other.down]))


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
    return Factors((q_up @ u) * root, root[:, None] * (vh @ q_down.T)), s


def sums(
    adapters: Sequence[Adapter], coefficients: Sequence[float]
) -> dict[str, tuple[Module, Factors]]:
    """Return the weighted sum of adapters, module by module; their files must be open.

    Raises:
        PerdureError: two adapters have a module in different forms.
    """
    merged: dict[str, tuple[Module, Factors]] = {}
    for adapter, coefficient in zip(adapters, coefficients, strict=True):
        for name, module in adapter.modules.items():
            down, up = adapter.factors(module, torch.float64)
            factors = Factors(coefficient * module.scaling * up, down)
            if name not in merged:
                merged[name] = module, factors
                continue
            first, earlier = merged[name]
            shapes = earlier.up.shape[0], earlier.down.shape[1]
            if shapes != (up.shape[0], down.shape[1]) or first.transposed != module.transposed:
                raise PerdureError(
                    f"{adapter.folder}: its factors of {name} have other shapes than in the "
                    "adapters before it; give adapters of one base"
                )
            merged[name] = first, added(earlier, factors)
    return merged


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
    merged: dict[str, tuple[Module, Factors]],
    cap: int | None,
    dtype: torch.dtype,
    scaling: float,
    fill: bool = False,
) -> MergedAdapter:
    """Return sums of adapters as one adapter, of one rank for all modules.

    Args:
        merged: the sums (`sums`).
        cap: the highest rank; None keeps all of the sums.
        dtype: the data type of the factors.
        scaling: by what the adapter's settings multiply B A.
        fill: whether the rank is the cap even if less were enough; the rest is zero.
    """
    products = {name: balanced(factors) for name, (_, factors) in merged.items()}
    needed = max((len(s) for _, s in products.values()), default=0)
    rank = cap if fill and cap else max(1, min(needed, cap or needed))
    tensors: dict[str, Tensor] = {}
    total = cut = worst = 0.0
    for name, (module, _) in merged.items():
        (factors, s) = products[name]
        energy, lost = s.square().sum().item(), s[rank:].square().sum().item()
        total, cut = total + energy, cut + lost
        worst = max(worst, lost / energy if energy else 0.0)
        up = torch.zeros(factors.up.shape[0], rank, dtype=torch.float64)
        down = torch.zeros(rank, factors.down.shape[1], dtype=torch.float64)
        kept = min(rank, len(s))
        up[:, :kept] = factors.up[:, :kept] / scaling
        down[:kept] = factors.down[:kept]
        for value, own in ((down, module.down), (up, module.up)):
            tensors[_peft_name(module, own)] = value.to(dtype).contiguous()
    return MergedAdapter(
        tensors=tensors,
        rank=rank,
        discarded=cut / total if total else 0.0,
        worst=worst,
        norm=(total - cut) ** 0.5,
    )


def _peft_name(module: Module, own: str) -> str:
    """Return the name of a factor in PEFT's files."""
    end = own.removeprefix(PREFIX).removeprefix(f"{module.name}.")
    return f"{PREFIX}{module.name}.{end}"


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
