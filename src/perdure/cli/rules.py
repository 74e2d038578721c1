"""`perdure rules`: list the rules and treatments of `perdure merge`, or describe one of them."""

import inspect
import textwrap
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.methods import value
from perdure.cli.output import Json, counted, grid, print_described, quiet


@command(api.rules, name="[NAME]")
def rules(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure rules ties"""
    quiet()
    described = api.rules(**arguments)
    print_described(described, as_json, one=bool(arguments), description=_description, table=_table)


def _table(described: list[dict[str, Any]]) -> list[RenderableType]:
    table = grid("rule", "what it does", "keeps", "order matters", "LoRA to LoRA", "paper")
    treatments = grid("treatment", "what it does", "whole tensors", "LoRA to LoRA", "paper")
    for one in described:
        name, about, paper = one["name"], one["summary"], one["paper"] or "-"
        if one["kind"] == "rule":
            kept, ordered = counted(one["state"], "tensor"), _answer(one["order_matters"])
            cells = (name, about, kept, ordered, _answer(one["adds_task_vectors"]), paper)
            table.add_row(*map(Text, cells))
        else:
            whole, scales = _answer(one["whole_tensors"]), _answer(one["scales"])
            treatments.add_row(*map(Text, (name, about, whole, scales, paper)))
    more = "details of a rule or a treatment:  perdure rules NAME"
    return [table, Text(), treatments, Text(more)]


def _description(described: dict[str, Any]) -> list[RenderableType]:
    from perdure.merging import after
    from perdure.merging.rules import find

    name, is_rule = described["name"], described["kind"] == "rule"
    about = textwrap.indent(inspect.getdoc((find if is_rule else after.find)(name)) or "", "  ")
    keywords = grid("keyword", "type", "default")
    for keyword in described["keywords"]:
        keywords.add_row(keyword["name"], Text(keyword["type"]), Text(value(keyword["default"])))
    facts = grid("", "")
    for fact, answer in facts_of(described):
        facts.add_row(Text(fact), Text(answer))
    head = f"{name}  {described['paper'] or ''}".rstrip()
    option = f"--rule {name}" if is_rule else f"--after {name}"
    use = f"to use it: perdure merge X Y --base BASE --into OUT {option}"
    return [Text(head, style="bold"), Text(f"\n{about}"), keywords, facts, Text(use)]


def facts_of(described: dict[str, Any]) -> list[tuple[str, str]]:
    """What a rule or a treatment declares, in words."""
    if described["kind"] == "treatment":
        neutral = ", ".join(f"{key}={value(word)}" for key, word in described["neutral"].items())
        return [
            ("changes nothing with", neutral),
            ("a LoRA adapter stays one", _answer(described["scales"])),
            ("needs whole tensors in memory", _answer(described["whole_tensors"])),
        ]
    return [
        (
            "keeps, beside the merged weights",
            f"{counted(described['state'], 'tensor')} of their size",
        ),
        ("the order of arrivals matters", _answer(described["order_matters"])),
        ("copies of a checkpoint give what one gives", _answer(described["idempotent"])),
        ("an arrival can be taken out of the state", _answer(described["can_undo"])),
        ("LoRA adapters give a LoRA adapter", _answer(described["adds_task_vectors"])),
        ("needs whole tensors in memory", _answer(described["whole_tensors"])),
        ("takes weights", _answer(described["weights"])),
    ]


def _answer(value: bool) -> str:
    return "yes" if value else "no"
