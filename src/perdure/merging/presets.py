"""Recipes of merging under one name: a rule with its weights, and what is checked and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from perdure.config import PresetName
from perdure.errors import PerdureError, nearest
from perdure.merging.fold import pieces
from perdure.merging.model import Checkpoint, Model, opened


RELATED = 0.2  # a cosine beyond which two task vectors are hardly independent


@dataclass(frozen=True)
class Preset:
    """A recipe.

    Args:
        name: its name.
        rule: the name of its rule.
        weights: the weights of its checkpoints.
        roles: what its checkpoints are, in words, in their order.
        speaks: the number of the checkpoint whose config, tokenizer and chat template are written.
    """

    name: str
    rule: str
    weights: tuple[float, ...]
    roles: tuple[str, ...]
    speaks: int


# theta = theta_base + (theta_trained - theta_base) + (theta_instruct - theta_base)
PRESETS: dict[str, Preset] = {
    "reinstruct": Preset(
        name="reinstruct",
        rule="task_arithmetic",
        weights=(1.0, 1.0),
        roles=("the base after continued pretraining", "the base's instruct model"),
        speaks=1,
    )
}


def preset(
    name: str, checkpoints: int, rule: str | None, keywords: Mapping[str, Any], weighted: bool
) -> Preset:
    """Return the preset of this name.

    Args:
        name: its name.
        checkpoints: how many checkpoints are merged.
        rule: the rule that was given, None if none was.
        keywords: the rule's keywords that were given.
        weighted: whether weights were given.

    Raises:
        PerdureError: there is none, it takes other checkpoints, or what it decides was given.
    """
    if name not in PRESETS:
        hint = nearest(name, get_args(PresetName))
        raise PerdureError(f"preset {name!r} is not a choice; {hint}")
    found = PRESETS[name]
    if checkpoints != len(found.roles):
        raise PerdureError(
            f"{name}: merges {len(found.roles)} checkpoints, in this order: "
            f"{' and '.join(found.roles)}; got {checkpoints}"
        )
    given = "rule" if rule not in (None, found.rule) else "weights" if weighted else None
    given = given or next((f"rule.{key}" for key in keywords if key != "exact"), None)
    if given is not None:
        raise PerdureError(f"{name}: decides {given} itself; leave it out, or leave --preset out")
    return found


def independence(base: Model, checkpoints: Sequence[Checkpoint]) -> dict[str, float]:
    """Return how the task vectors of two checkpoints stand to each other.

    Returns:
        `cosine`, and `opposite`, the share of the elements that both change in which the signs
        differ. Independent task vectors have about 0 and 1/2.
    """
    product, both, opposite = 0.0, 0, 0
    squares = [0.0, 0.0]
    with opened(base, list(checkpoints)):
        for place in base.places():
            for piece in pieces(place.shape):
                weights = base.tensors.read(place.tensor, piece).to(torch.float32)
                taus = [c.tau(place.tensor, piece, weights).double() for c in checkpoints]
                signs = taus[0] * taus[1]
                product += signs.sum().item()
                squares = [s + t.square().sum().item() for s, t in zip(squares, taus, strict=True)]
                both += int(((taus[0] != 0) & (taus[1] != 0)).sum())
                opposite += int((signs < 0).sum())
    norms = (squares[0] * squares[1]) ** 0.5
    return {
        "cosine": round(product / norms, 4) if norms else 0.0,
        "opposite": round(opposite / both, 4) if both else 0.0,
    }


def lines_about(measured: Mapping[str, float]) -> list[str]:
    """Return what `independence` found, in words."""
    cosine = measured["cosine"]
    lines = [
        f"the two changes have a cosine of {cosine:.2f} and opposite signs in "
        f"{measured['opposite']:.0%} of the elements; independent ones have 0 and 50%"
    ]
    if abs(cosine) > RELATED:
        lines += [
            "warning: the two changes are not independent, so that their sum counts twice what "
            "they share, or cancels it; check the base, and compare the result with both"
        ]
    return lines
