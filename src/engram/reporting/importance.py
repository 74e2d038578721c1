"""What Recurrent-KIF found important, from the counts that it keeps with each stage."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from engram.models.layout import STATE


LED = "recurrent_kif."
IMPORTANT = f"{LED}important."
LAYERS = 12  # rows of a picture; more layers are taken together
# Parts of a parameter's name that say nothing of where it stands.
SAID_BY_ALL = {"base_model", "model", "default", "weight", "bias", "modules_to_save", "transformer"}
INSIDE = re.compile(r"lora_\w+|original_module")


@dataclass(frozen=True)
class Identified:
    """A stage's rounds: the shares of (both, new only, old only, neither) in each, and at each
    place (layer, module) the share of weights that is important to the (new, old) tasks.
    """

    task: str
    rounds: tuple[tuple[float, ...], ...]
    places: dict[tuple[str, str], tuple[float, float]]

    @property
    def cases(self) -> tuple[float, ...]:
        """The mean shares over the rounds."""
        return tuple(sum(case) / len(self.rounds) for case in zip(*self.rounds, strict=True))

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(layer for layer, _ in self.places))

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(module for _, module in self.places))


def identified(folder: Path, task: str) -> Identified | None:
    """What a stage's method.safetensors holds of it; None for other methods and the first task."""
    path = folder / STATE
    if not path.exists():
        return None
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        if f"{LED}shares" not in names:
            return None
        rounds = file.get_tensor(f"{LED}shares").tolist()
        counts = {
            name.removeprefix(IMPORTANT): file.get_tensor(name).tolist()
            for name in names
            if name.startswith(IMPORTANT)
        }
    return Identified(task, tuple(map(tuple, rounds)), _shares(counts))


def _shares(counts: dict[str, list[int]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Counts by parameter, added up by place."""
    where = places(counts)
    weights, new, old = Counter(), Counter(), Counter()
    for name, place in where.items():
        n, inner, outer = counts[name]
        weights[place] += n
        new[place] += inner
        old[place] += outer
    return {place: (new[place] / n, old[place] / n) for place, n in weights.items()}


def places(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The (layer, module) of each parameter, by its name, in the order of the layers."""
    split = {name: _split(name) for name in names}
    stacks = {stack for stack, _, _ in split.values() if stack}
    ends = {module[-1:]: set() for _, _, module in split.values()}
    for _, _, module in split.values():
        ends[module[-1:]].add(module)
    highest = max((layer for _, layer, _ in split.values()), default=0)
    width = -(-(highest + 1) // LAYERS)
    found = {}
    for name, (stack, layer, module) in sorted(split.items(), key=lambda item: item[1]):
        first = layer // width * width
        last = min(first + width - 1, highest)
        row = "-" if layer < 0 else f"{first}" if first == last else f"{first}-{last}"
        row = f"{stack} {row}" if len(stacks) > 1 and layer >= 0 else row
        short = module[-1:] if len(ends[module[-1:]]) == 1 else module[-2:]
        found[name] = (row, ".".join(short) or "-")
    return found


def _split(name: str) -> tuple[str, int, tuple[str, ...]]:
    """The stack (encoder or decoder), the layer's number (-1 outside of them), the module."""
    words = [w for w in name.split(".") if w not in SAID_BY_ALL and not INSIDE.fullmatch(w)]
    at = next((i for i, word in enumerate(words) if word.isdigit()), None)
    if at is None:
        return "", -1, tuple(words)
    stack = next((word for word in words[:at] if word in ("encoder", "decoder")), "")
    return stack, int(words[at]), tuple(w for w in words[at + 1 :] if not w.isdigit())
