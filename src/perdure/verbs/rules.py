"""`rules` describes the rules of `merge`, and the treatments after them."""

from typing import Any

from perdure.errors import PerdureError
from perdure.merging import after
from perdure.merging.rules import REGISTRY, find, keywords, names
from perdure.verbs.methods import spelled, summary


def rules(name: str | None) -> list[dict[str, Any]]:
    """Describe all rules and treatments, or one of them. See `perdure.api.rules`."""
    if name is None:
        return [*map(describe_rule, names()), *map(describe_treatment, after.names())]
    if name in after.names():
        return [describe_treatment(name)]
    if name not in names():
        valid = [*names(), *after.names()]
        other = REGISTRY.other_names.get(name) or after.REGISTRY.other_names.get(name)
        hint = f"did you mean {other!r}?" if other in valid else REGISTRY.hint(name, valid)
        raise PerdureError(f"unknown rule {name!r}; {hint}")
    return [describe_rule(name)]


def describe_rule(name: str) -> dict[str, Any]:
    """Return a rule's summary, paper, keywords and what it declares.

    Raises:
        PerdureError: there is no rule of that name.
    """
    rule = find(name)
    return {
        "name": name,
        "kind": "rule",
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


def describe_treatment(name: str) -> dict[str, Any]:
    """Return a treatment's summary, paper, keywords and what it declares.

    Raises:
        PerdureError: there is no treatment of that name.
    """
    treatment = after.find(name)
    return {
        "name": name,
        "kind": "treatment",
        "summary": summary(treatment),
        "paper": treatment.paper,
        "neutral": treatment.neutral,
        "scales": treatment.scales,
        "whole_tensors": treatment.whole,
        "keywords": spelled(after.keywords(name)),
    }
