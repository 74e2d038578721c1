"""The picture of a result file: each method's OP with its interval, the best first, as an SVG."""

import re
from importlib.resources import files
from typing import Any

from perdure.reporting import figures
from perdure.reporting.spread import spread


def picture(records: list[dict[str, Any]], title: str) -> str:
    """A row a method: its mean, Student's 95 % interval over orders, every run as a stroke."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], []).append(record)
    rows = []
    for method, own in methods.items():
        scores = [record["overall"] for record in own]
        rows.append((method, spread(scores, [record["order"] for record in own]), scores))
    rows.sort(key=lambda row: -(row[1].mean or 0.0))
    drawn = str(figures.whiskers(title, rows))
    root = '<svg xmlns="http://www.w3.org/2000/svg"'
    return drawn.replace("<svg", root, 1).replace("</title>", f"</title>{_style()}", 1) + "\n"


def _style() -> str:
    """What of the report's style the figure needs, in light and in dark."""
    css = files("perdure.reporting").joinpath("page.css").read_text(encoding="utf-8")
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", css, re.DOTALL)
    light = re.search(r":root \{.*?\}", css, re.DOTALL)
    own = re.findall(r"^\.figure.*?\}", css, re.DOTALL | re.MULTILINE)
    assert light
    assert dark
    font = "svg { font-family: sans-serif; }"
    return "<style>" + "\n".join([light[0], dark[0], font, *own]) + "</style>"
