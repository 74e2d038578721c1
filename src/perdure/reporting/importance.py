"""Which weights Recurrent-KIF found important, from the counts that it stores with each stage."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from safetensors import SafetensorError, safe_open

from perdure.errors import PerdureError, one_line
from perdure.shapes import Rule, check_shape


PREFIX = "recurrent_kif."
IMPORTANT = f"{PREFIX}important."
FOUR = Rule("four shares", lambda shares: len(shares) == 4)
COUNTS = Rule(
    "the numbers of weights, of which one at least, and of important ones",
    lambda numbers: len(numbers) == 3 and numbers[0] >= 1 and min(numbers) >= 0,
)
LAYERS = 12  # the most rows of a picture; neighbouring layers are combined if there are more
# Parts of a parameter's name that do not show its place in the model.
WRAPPERS = {"base_model", "model", "default", "weight", "bias", "modules_to_save", "transformer"}
INSIDE = re.compile(r"lora_\w+|original_module")


@dataclass(frozen=True)
class Identified:
    """The importance of weights at one stage.

    Args:
        task: the task that the stage learned.
        rounds: for each round the shares of weights that are important to (both, the new task only,
            the old tasks only, neither).
        places: by (layer, module), the shares of weights that are important to the (new, old)
            tasks.
        of: what was counted: `weights`, or `rows of BA` (`unit: row`).
    """

    task: str
    rounds: tuple[tuple[float, ...], ...]
    places: dict[tuple[str, str], tuple[float, float]]
    of: str = "weights"

    @property
    def cases(self) -> tuple[float, ...]:
        """The shares of `rounds`, averaged over the rounds."""
        return tuple(sum(case) / len(self.rounds) for case in zip(*self.rounds, strict=True))

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(layer for layer, _ in self.places))

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(module for _, module in self.places))


def identified(path: Path | None, task: str) -> Identified | None:
    """Read the importance at a stage from its state; None for other methods and the first task.

    Raises:
        PerdureError: the file is not as a stage has it.
    """
    if path is None:
        return None
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if f"{PREFIX}shares" not in names:
                return None
            rounds = file.get_tensor(f"{PREFIX}shares").tolist()
            counts = {
                name.removeprefix(IMPORTANT): file.get_tensor(name).tolist()
                for name in names
                if name.startswith(IMPORTANT)
            }
        check_shape(rounds, list[Annotated[list[float], FOUR]], f"{path}: shares")
        check_shape(counts, dict[str, Annotated[list[int], COUNTS]], f"{path}: important")
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise PerdureError(f"{path}: damaged ({one_line(error)}); restore it from a copy") from None
    of_rows = any("lora_B." in name for name in counts) and not any("lora_A." in n for n in counts)
    of = "rows of BA" if of_rows else "weights"
    return Identified(task, tuple(map(tuple, rounds)), _shares(counts), of)


def _shares(counts: dict[str, list[int]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Sum up counts (weights, important to the new, to the old) by place, as shares."""
    weights, new, old = Counter(), Counter(), Counter()
    for name, place in places(counts).items():
        num_weights, num_new, num_old = counts[name]
        weights[place] += num_weights
        new[place] += num_new
        old[place] += num_old
    return {place: (new[place] / n, old[place] / n) for place, n in weights.items()}


def places(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the (layer, module) of each parameter by its name, in the order of the layers."""
    split = {name: _split(name) for name in names}
    stacks = {stack for stack, _, _ in split.values() if stack}
    ends = {module[-1:]: set() for _, _, module in split.values()}
    for _, _, module in split.values():
        ends[module[-1:]].add(module)
    highest = max((layer for _, layer, _ in split.values()), default=0)
    width = max(1, -(-(highest + 1) // LAYERS))  # how many layers are combined in a row
    by_name = {}
    for name, (stack, layer, module) in sorted(split.items(), key=lambda item: item[1]):
        first = layer // width * width
        last = min(first + width - 1, highest)
        row = "-" if layer < 0 else f"{first}" if first == last else f"{first}-{last}"
        row = f"{stack} {row}" if len(stacks) > 1 and layer >= 0 else row
        short = module[-1:] if len(ends[module[-1:]]) == 1 else module[-2:]
        by_name[name] = (row, ".".join(short) or "-")
    return by_name


def _split(name: str) -> tuple[str, int, tuple[str, ...]]:
    """Return the stack (encoder or decoder), the layer (-1 if there is none) and the module."""
    parts = [w for w in name.split(".") if w not in WRAPPERS and not INSIDE.fullmatch(w)]
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if index is None:
        return "", -1, tuple(parts)
    stack = next((part for part in parts[:index] if part in ("encoder", "decoder")), "")
    return stack, int(parts[index]), tuple(p for p in parts[index + 1 :] if not p.isdigit())
