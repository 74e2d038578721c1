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
    dev="--dev FILE",
    after="--after NAME",
    statistics="--statistics FOLDER",
    rows="--rows FILE",
)
def merge(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure merge sft code --base Qwen/Qwen3-0.6B --into merged --rule ties"""
    quiet()
    models, keywords, of_treatments = _split(arguments.pop("models"))
    arguments["after"] = _after(arguments.get("after", []), of_treatments)
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


def _split(words: Sequence[Any]) -> tuple[list[str], dict[str, Any], dict[str, dict[str, Any]]]:
    """Divide words into checkpoints, the rule's keywords, and those of treatments by their names.

    Raises:
        PerdureError: a keyword is not written rule.KEY=VALUE or after.NAME.KEY=VALUE.
    """
    texts = [str(word) for word in words]
    keywords = [text for text in texts if text.startswith(("rule.", "after.")) and "=" in text]
    models = [text for text in texts if text not in keywords]
    for text in models:
        key, is_setting, _ = text.partition("=")
        if is_setting and key.isidentifier() and not Path(text).exists():
            raise PerdureError(
                f"{text}: is no checkpoint; a rule's keyword is written rule.{text}, and a "
                f"treatment's after.NAME.{text}"
            )
    of_rule: dict[str, Any] = {}
    of_treatments: dict[str, dict[str, Any]] = {}
    for key, value in overrides(keywords).items():
        kind, *path = key.split(".")
        if kind == "rule":
            if len(path) != 1:
                raise PerdureError(f"{key}: a rule's keyword is written rule.KEY=VALUE")
            of_rule[path[0]] = value
        else:
            if len(path) != 2:
                raise PerdureError(f"{key}: a treatment's keyword is written after.NAME.KEY=VALUE")
            of_treatments.setdefault(path[0], {})[path[1]] = value
    return models, of_rule, of_treatments


def _after(names: Sequence[str], keywords: dict[str, dict[str, Any]]) -> Any:
    """Return the treatments with their keywords, in the order of their names.

    Raises:
        PerdureError: there are keywords of a treatment that is not applied.
    """
    other = next((name for name in keywords if name not in names), None)
    if other is not None:
        key = next(iter(keywords[other]))
        raise PerdureError(f"after.{other}.{key}: give --after {other} as well")
    if len(set(names)) < len(names):  # a mapping would hide it
        return list(names)
    return {name: keywords.get(name, {}) for name in names}


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
    if "treated_norm" in result:
        names = ", then ".join(name for one in result["after"] for name in one)
        table.add_row(Text(f"after {names}"), "", f"{result['treated_norm']:.4g}")
    stdout().print(table)
    if "coefficients" in result:
        shares = result["coefficients"]
        base = Text(f"the merged model is {1 - sum(shares):.0%} of the base")
        stdout().print(
            base
            + "".join(
                f", {share:.0%} of {c['checkpoint']}"
                for share, c in zip(shares, result["checkpoints"], strict=True)
            )
        )
    cosines = [c for i, row in enumerate(result["cosines"]) for c in row[:i]]
    if cosines:
        low, high = f"{min(cosines):.2f}", f"{max(cosines):.2f}"
        values = f"cosine of the changes: {low}" if len(cosines) == 1 else ""
        stdout().print(values or f"cosines of the changes: {low} to {high}")
    if result["kind"] == "adapter":
        lost, most = result["discarded"], result["most_discarded"]
        stdout().print(
            f"rank {result['rank']}; cut off: {lost:.2%} of the sum of squares, in one module "
            f"{most:.2%}"
        )
    what = "a LoRA adapter" if result["kind"] == "adapter" else "a plain model"
    out = result["model"]
    stdout().print(f"{out}: {what}; its README.md names what it was made of")
    if result["generates"]:
        stdout().print(f"what it has lost:  perdure check {out} --against {result['base']}")
