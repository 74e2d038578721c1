"""`rules` describes the rules of `merge`."""

from typing import Any

from perdure.merging.rules import find, keywords, names
from perdure.verbs.methods import spelled, summary


def rules(name: str | None) -> list[dict[str, Any]]:
    """Describe all rules, or only the one of this name. See `perdure.api.rules`."""
    return [describe_rule(rule_name) for rule_name in ([name] if name else names())]


def describe_rule(name: str) -> dict[str, Any]:
    """Return a rule's summary, paper, keywords and what it declares.

    Raises:
        PerdureError: there is no rule of that name.
    """
    rule = find(name)
    return {
        "name": name,
        "summary": summary(rule),
        "paper": rule.paper,
        "state": len(rule.state),
        "order_matters": rule.order_matters,
        "idempotent": rule.idempotent,
        "can_undo": rule.can_undo,
        "adds_task_vectors": rule.linear,
        "whole_tensors": rule.whole,
        "weights": rule.weighted,
        "keywords": spelled(keywords(name)),
    }
