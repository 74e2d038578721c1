"""The gate: which limits of the settings a stage's verdict is beyond."""

import math
from typing import Any

from perdure.config import Gate


def beyond(gate: Gate, judged: dict[str, Any]) -> list[str]:
    """Return a reason for each limit that a stage is beyond.

    - `forgetting`: the score of an old task fell by more, before - after > limit.
    - `general`: of the checks that the base passes, a larger share was lost net,
      (fell - rose) / passed > limit.
    - `kl`: the mean KL from the base is larger, in nats per token.

    A limit does not hold where its number could not be measured (`open_limits`). A number that is
    not finite is beyond every limit.

    Args:
        gate: the limits.
        judged: the verdict on the stage.
    """
    reasons = []
    for name, change in judged["old"].items():
        before, after = change["before"], change["after"]
        # `not <=`, so that a score that is not a number is beyond the limit, too
        if gate.forgetting is not None and not (
            before is None or before - after <= gate.forgetting
        ):
            reasons.append(
                f"{name} fell from {before:.3f} to {after:.3f} "
                f"(gate.forgetting is {gate.forgetting:g})"
            )
    general = judged["general"]
    if "unmeasured" in general:
        return reasons
    passed, fell, rose = (general[key] for key in ("passed_by_reference", "fell", "rose"))
    if gate.general is not None and general["judged"] and fell - rose > gate.general * passed:
        reasons.append(
            f"general ability: {fell} of the {passed} checks that the base passes fail, and {rose} "
            f"others pass (gate.general is {gate.general:g})"
        )
    kl = math.inf if general.get("kl_is_infinite") else general["kl"]
    if gate.kl is not None and not (kl is None or kl <= gate.kl):
        reasons.append(f"KL from the base: {kl:.3f} nats per token (gate.kl is {gate.kl:g})")
    return reasons


def open_limits(gate: Gate, judged: dict[str, Any]) -> list[str]:
    """Return a line for each limit that could not be applied, because nothing was measured."""
    general = judged["general"]
    lines = []
    if gate.general is not None and not general.get("judged"):
        reason = general.get("unmeasured") or (
            f"the base passes only {general['passed_by_reference']} of {general['rows']} checks"
        )
        lines.append(f"gate.general cannot hold: {reason}")
    is_infinite = general.get("kl_is_infinite", False)
    if gate.kl is not None and general.get("kl") is None and not is_infinite:
        lines.append("gate.kl cannot hold: the KL from the base was not measured")
    if gate.forgetting is not None and judged["unmeasured"]:
        names = ", ".join(judged["unmeasured"])
        lines.append(f"gate.forgetting cannot hold for tasks without test rows: {names}")
    return lines
