"""The gate: which limits of the settings a stage's verdict is beyond."""

import math
from typing import Any

from perdure.config import Gate


# 0.8 - 0.7 is a little more than 0.1 in floating point, which must not count as a fall by more than
# 0.1. The tolerance is far below what one row changes in a score.
ROUNDING = 1e-9


def beyond(gate: Gate, judged: dict[str, Any]) -> list[str]:
    """Return a reason for each limit that a stage is beyond.

    - `forgetting`: the score of an old task fell by more, before - after > limit.
    - `general`: of the checks that the base passes, a larger share was lost net,
      (fell - rose) / passed > limit; or the mean of one of lm-eval's tasks is worse than the base's
      by a larger share of it, (before - now) / before > limit.
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
            before is None or before - after <= gate.forgetting + ROUNDING
        ):
            sampled = f" on {change['rows']} of its {change['of']} rows" if "of" in change else ""
            reasons.append(
                f"{name} fell from {before:.3f} to {after:.3f}{sampled} "
                f"(gate.forgetting is {gate.forgetting:g})"
            )
    general = judged["general"]
    reasons += _worse_tasks(gate, general.get("lm_eval", {}))
    if "unmeasured" in general:
        return reasons
    passed, fell, rose = (general[key] for key in ("passed_by_reference", "fell", "rose"))
    lost = fell - rose
    if gate.general is not None and general["judged"] and lost > gate.general * passed + ROUNDING:
        reasons.append(
            f"general ability: {fell} of the {passed} checks that the base passes fail, and {rose} "
            f"others pass (gate.general is {gate.general:g})"
        )
    kl = math.inf if general.get("kl_is_infinite") else general["kl"]
    if gate.kl is not None and not (kl is None or kl <= gate.kl):
        reasons.append(f"KL from the base: {kl:.3f} nats per token (gate.kl is {gate.kl:g})")
    return reasons


def _worse_tasks(gate: Gate, tasks: dict[str, Any]) -> list[str]:
    """Return a reason for each of lm-eval's tasks that is worse by more than `gate.general`."""
    reasons = []
    for name, task in tasks.items():
        before, now = task["before"], task["now"]
        if gate.general is None or before is None:
            continue
        now = math.nan if now is None else now
        fall = before - now if task["higher_is_better"] else now - before
        if not fall <= gate.general * abs(before) + ROUNDING:
            reasons.append(
                f"general ability: {task['metric']} of lm-eval's {name} went from {before:.3f} to "
                f"{now:.3f} (gate.general is {gate.general:g})"
            )
    return reasons


def open_limits(gate: Gate, judged: dict[str, Any]) -> list[str]:
    """Return a line for each limit that could not be applied, because nothing was measured."""
    general = judged["general"]
    lines = []
    if gate.general is not None and not general.get("judged"):
        reason = general.get("unmeasured") or (
            f"the base passes only {general['passed_by_reference']} of {general['rows']} checks"
        )
        where = " for the guard's checks" if "lm_eval" in general else ""
        lines.append(f"gate.general cannot hold{where}: {reason}")
    is_infinite = general.get("kl_is_infinite", False)
    if gate.kl is not None and general.get("kl") is None and not is_infinite:
        lines.append("gate.kl cannot hold: the KL from the base was not measured")
    if gate.forgetting is not None and judged["unmeasured"]:
        names = ", ".join(judged["unmeasured"])
        lines.append(f"gate.forgetting cannot hold for tasks whose test rows are missing: {names}")
    return lines
