"""`perdure merge`: merge checkpoints, or one more into a lineage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.learn import print_stage
from perdure.cli.output import Json, grid, print_json, quiet, stderr_line, stdout
from perdure.config import overrides
from perdure.errors import PerdureError


@command(
    api.merge,
    models="CHECKPOINT...",
    undo="--undo STAGE",
    rule="--rule RULE",
    weights="--weight W,...",
    base="--base BASE",
    into="--into FOLDER",
    max_memory="--max-memory SIZE",
    train="--train FILE",
    test="--test FILE",
)
def merge(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure merge sft code --base Qwen/Qwen3-0.6B --into merged --rule ties"""
    quiet()
    models, keywords = _split(arguments.pop("models"))
    if "weights" in arguments:
        arguments["weights"] = _numbers(arguments["weights"])
    result = api.merge(models, **arguments, keywords=keywords, say=stderr_line)
    if "model" not in result:
        name = result["task"]["name"]
        what = f"merged {name} by {next(iter(result['rule']))}"
        if "undone" in result:
            what = f"took {name} out, which stage {result['undone']} had merged"
        print_stage(Path(models[0]), result, what, as_json)
    elif as_json:
        print_json(result)
    else:
        _show(result)


def _split(words: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Divide words into checkpoints and the rule's keywords.

    Raises:
        PerdureError: a keyword is not written rule.KEY=VALUE.
    """
    texts = [str(word) for word in words]
    keywords = [text for text in texts if text.startswith("rule.") and "=" in text]
    models = [text for text in texts if text not in keywords]
    values = overrides(keywords)
    nested = next((key for key in values if key.count(".") > 1), None)
    if nested:
        raise PerdureError(f"{nested}: a rule's keyword is written rule.KEY=VALUE")
    return models, {key.removeprefix("rule."): value for key, value in values.items()}


def _numbers(text: str) -> list[float]:
    """Read numbers that are separated by commas.

    Raises:
        PerdureError: one is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise PerdureError(f"--weight {text}: give numbers, such as 0.5,0.3") from None


def _show(result: dict[str, Any]) -> None:
    table = grid(
        "checkpoint", "weight", "norm of its change", right=["weight", "norm of its change"]
    )
    for checkpoint in result["checkpoints"]:
        weight = checkpoint["weight"]
        cells = ("-" if weight is None else f"{weight:g}", f"{checkpoint['norm']:.4g}")
        table.add_row(Text(checkpoint["checkpoint"]), *cells)
    table.add_row(Text("merged"), "", f"{result['norm']:.4g}")
    stdout().print(table)
    cosines = [c for i, row in enumerate(result["cosines"]) for c in row[:i]]
    if cosines:
        stdout().print(f"cosines of the changes: {min(cosines):.2f} to {max(cosines):.2f}")
    if result["kind"] == "adapter":
        lost, most = result["discarded"], result["most_discarded"]
        stdout().print(
            f"rank {result['rank']}; cut off: {lost:.2%} of the sum of squares, in one module "
            f"{most:.2%}"
        )
    what = "a LoRA adapter" if result["kind"] == "adapter" else "a plain model"
    stdout().print(f"{result['model']}: {what}; its README.md names what it was made of")
