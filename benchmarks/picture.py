"""The picture of a result file as an SVG: each method's OP with its interval, the best first."""

import re
from importlib.resources import files
from typing import Any

from perdure.reporting import figures
from perdure.reporting.spread import spread


def picture(records: list[dict[str, Any]], title: str) -> str:
    """Draw one row for each method: the mean, the 95 % interval over orders, and all runs."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], []).append(record)
    rows = []
    for method, method_records in methods.items():
        scores = [record["overall"] for record in method_records]
        orders = [record["order"] for record in method_records]
        rows.append((method, spread(scores, orders), scores))
    rows.sort(key=lambda row: -(row[1].mean or 0.0))
    svg = str(figures.whiskers(title, rows))
    root = '<svg xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg", root, 1).replace("</title>", f"</title>{_style()}", 1) + "\n"


def _style() -> str:
    """The rules of the report's style sheet that the figure needs, for light and dark mode."""
    css = files("perdure.reporting").joinpath("page.css").read_text(encoding="utf-8")
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", css, re.DOTALL)
    light = re.search(r":root \{.*?\}", css, re.DOTALL)
    figure_rules = re.findall(r"^\.figure.*?\}", css, re.DOTALL | re.MULTILINE)
    assert light
    assert dark
    font = "svg { font-family: sans-serif; }"
    return "<style>" + "\n".join([light[0], dark[0], font, *figure_rules]) + "</style>"
