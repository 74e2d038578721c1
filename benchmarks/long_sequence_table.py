"""The records of `long_sequence.py`: a table of the methods, and one of the ablation."""

from typing import Any

import standard_cl_table
import tables

from engram.measure.statistics import mean


# Table of arXiv 2502.17510: T5-large, order 1, OP and BWT in percent; None for what is not in it
PUBLISHED: dict[str, tuple[float, float] | None] = {
    "full": (77.9, -3.4),
    "no_refresh": (74.8, -4.8),
    "no_masks": (52.3, -21.5),
    "one_pair": (72.1, -11.2),
    "soft_weights": (76.1, -4.1),
    "no_shared": (75.8, -4.3),
    "slow_map": None,
}
COLUMNS = (
    "variant",
    "n",
    "OP",
    "OP - full",
    "BWT",
    "learned",
    "paper: OP",
    "OP - full",
    "BWT",
)


def summarize(records: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """One entry a method, and after them the ablation's entries."""
    compared = [m for m in methods if m not in PUBLISHED]
    own = [r for r in records if r["method"] in compared]
    rates = {r["method"]: r["learning_rate"] for r in records}
    return [*standard_cl_table.summarize(own, compared, rates), *_ablation(records)]


def _ablation(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {
        m: {(r["order"], r["seed"]): r for r in records if r["method"] == m} for m in PUBLISHED
    }

    def overall(method: str) -> dict[Any, float]:
        return {pair: record["overall"] for pair, record in found[method].items()}

    entries = []
    for method in (m for m in PUBLISHED if found[m]):
        entry: dict[str, Any] = {"ablation": method, "n": len(found[method])}
        for key in ("overall", "backward_transfer", "learning_accuracy"):
            entry[key] = mean([record[key] for record in found[method].values()])
        if method != "full":
            entry["to_full"] = tables.difference(overall(method), overall("full"))
        entries.append(entry)
    tables.correct(entries, "to_full")
    return entries


def methods(summary: list[dict[str, Any]]) -> str:
    return standard_cl_table.markdown([entry for entry in summary if "method" in entry])


def ablation(summary: list[dict[str, Any]]) -> str:
    """The ablation as Markdown, the paper's numbers beside."""
    lines = []
    for entry in (e for e in summary if "ablation" in e):
        lines.append(
            (
                entry["ablation"],
                str(entry["n"]),
                f"{entry['overall']:.3f}",
                tables.difference_text(entry.get("to_full")),
                f"{entry['backward_transfer']:+.3f}",
                f"{entry['learning_accuracy']:.3f}",
                *_published(entry["ablation"]),
            )
        )
    return tables.markdown(COLUMNS, lines)


def _published(variant: str) -> tuple[str, str, str]:
    found, full = PUBLISHED[variant], PUBLISHED["full"]
    if found is None or full is None:
        return "-", "-", "-"
    change = found[0] - full[0]
    return f"{found[0]:.1f}", f"{change:+.1f}" if change else "-", f"{found[1]:+.1f}"


def trials(records: list[dict[str, Any]]) -> str:
    """The trials as Markdown, on held-out rows: a line a method, its rates side by side."""
    records = [r for r in records if r["learning_rate"]]  # `constant` has no rate to choose
    rates = sorted({r["learning_rate"] for r in records})
    found = {(r["method"], r["learning_rate"]): r for r in records}
    lines = []
    for method in dict.fromkeys(r["method"] for r in records):
        own = [found.get((method, rate)) for rate in rates]
        shown = [[_trial(r, key) for key in ("overall", "backward_transfer")] for r in own]
        lines.append([method, *(cell for pair in shown for cell in pair)])
    heads = [f"{name} at {rate:g}" for rate in rates for name in ("OP", "BWT")]
    return tables.markdown(("method", *heads), lines)


def alike(records: list[dict[str, Any]]) -> str:
    """`long_sequence_why.py` as Markdown: how alike all texts look, the base before the stages."""
    base, *methods = records
    stages = list(dict.fromkeys(stage for r in methods for stage in r["similarity"]))
    lines = []
    for r in methods:
        seen = [base["similarity"]["0"], *(r["similarity"][stage] for stage in stages)]
        lines.append([r["method"], *(f"{value:.2f}" for value in seen)])
    return tables.markdown(("method", "base", *(f"stage {stage}" for stage in stages)), lines)


def _trial(record: dict[str, Any] | None, key: str) -> str:
    value = record and record[key]
    return "-" if value is None else f"{value:.3f}" if key == "overall" else f"{value:+.3f}"


def markdown(summary: list[dict[str, Any]]) -> str:
    return f"{methods(summary)}\n\n{ablation(summary)}"
