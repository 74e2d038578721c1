"""What the guard found, in words."""

from typing import Any

from perdure.measure.guard.lm_eval_result import short_lines, task_words
from perdure.measure.guard.loss import NET, checks_of
from perdure.measure.statistics import SIGNIFICANCE, sign_test


TOO_FEW = "too few to tell a loss from chance; ask more rows"


def words(result: dict[str, Any]) -> list[str]:
    """Return a result in words: the lines on the checks, and those on lm-eval's tasks.

    Of many tasks of lm-eval, only those that are lost have a line each.
    """
    tasks = result.get("lm_eval", {})
    lines = task_words(tasks)
    lost = [lines[name] for name, task in tasks.items() if task["lost"]]
    return [*check_words(result), *lost, *short_lines(tasks)]


def check_words(result: dict[str, Any]) -> list[str]:
    """Return a line each for the checks, the KL and the form.

    There is no line for the form if the model was not asked, because the reference is not able. A
    model whose outputs are not finite has only one line.
    """
    if not result.get("is_finite", True):
        return [
            f"general ability: lost, because the outputs of {result['model']} are not finite; its "
            "weights are damaged"
        ]
    lines = [f"general ability: {_flipped(result)}", _divergence(result)]
    return [*lines, _form(result)] if "now" in result else lines


def _flipped(result: dict[str, Any]) -> str:
    reference, passed, rows = (result[key] for key in ("reference", "passed_by_reference", "rows"))
    if not result["judged"]:
        return f"not judged, because {reference} itself passes only {passed} of {rows} checks"
    can_tell = sign_test(passed, 0) < SIGNIFICANCE  # whether it would count if all of them fell
    if not result["fell"]:
        unchanged = f"{reference} passes {passed} of {rows} checks, and all of these still pass"
        return f"{unchanged}: nothing lost" if can_tell else f"{unchanged}, but they are {TOO_FEW}"
    fallen = sorted(
        ((skill, counts["fell"]) for skill, counts in result["skills"].items() if counts["fell"]),
        key=lambda pair: -pair[1],
    )
    where = ", ".join(f"{skill} {fell}" for skill, fell in fallen)
    now_fail = f"{result['fell']} of {passed} checks that {reference} passes now fail ({where})"
    now_pass = f", {result['rose']} others now pass" if result["rose"] else ""
    if checks_of(result)["lost"]:
        conclusion = "lost"
    elif result["p"] < SIGNIFICANCE:
        conclusion = "too little to count"
    elif not can_tell:
        conclusion = TOO_FEW
    elif result["fell"] - result["rose"] >= NET * rows:
        conclusion = "within noise, but more rows may tell"
    else:
        conclusion = "within noise"
    return f"{now_fail}{now_pass}, p = {result['p']:.2g}: {conclusion}"


def _divergence(result: dict[str, Any]) -> str:
    if result["kl"] is not None:
        return f"KL from {result['reference']}: {result['kl']:.3f} nats per token of its answers"
    if result.get("kl_is_infinite"):
        return f"KL from {result['reference']}: infinite, because some of its tokens are ruled out"
    reason = "the outputs are not of the same size"
    if not result["same_vocabulary"]:
        reason = "the vocabularies differ"
    elif not result.get("weights_kept", True):
        reason = "its weights were not kept"
    return f"KL from {result['reference']}: not measured, because {reason}"


def _form(result: dict[str, Any]) -> str:
    before, now = result["before"], result["now"]
    tokens, empty, equal = (
        f"{before[key]:{style}} -> {now[key]:{style}}"
        for key, style in (("tokens", ".1f"), ("empty", ".0%"), ("equal", ".0%"))
    )
    return f"answers: {tokens} tokens on average, {empty} empty, {equal} equal to another answer"
