"""Makes all that is shown of the result files: the READMEs' tables and pictures, methods' costs.

python benchmarks/readme.py
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import defaults
import long_sequence_table
import measured
import methods_table
import picture
import standard_cl_table
import tables

from engram.methods import find, names
from engram.reporting import measured as stored
from engram.train.method import Family


HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
READMES = (HERE.parent / "README.md", HERE / "README.md")


def results(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def summarize_again() -> None:
    """Make the summaries of the result files anew from their records; nothing is run."""
    for name in ("standard_cl", "methods", "long_sequence"):
        found = results(name)
        records = found["records"]
        methods = list(
            dict.fromkeys(entry.get("method") or entry["ablation"] for entry in found["summary"])
        )
        if name == "standard_cl":
            found["summary"] = standard_cl_table.summarize(records, methods, found["chosen"])
        else:
            table = {"methods": methods_table, "long_sequence": long_sequence_table}[name]
            found["summary"] = table.summarize(records, methods)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (HERE / "results" / f"{name}.json").write_text(text, encoding="utf-8")


def probes(records: list[dict[str, Any]]) -> str:
    """The probes as Markdown: a line each."""
    lines = []
    for r in records:
        numbers = (r.get(k) for k in ("overall", "backward_transfer", "learning_accuracy"))
        cells = ["-" if n is None else f"{n:.3f}" for n in numbers]
        lines.append([r["method"], f"{r['learning_rate']:g}", *cells])
    return tables.markdown(("probe", "rate", "OP", "BWT", "learned"), lines)


def method_list() -> str:
    """Every method as Markdown, by family: what it does, and what it kept where it was measured.

    The first paragraph of a method's docstring says what it does. `measured.json`, which is made
    from the result file, has the score beside `sequential`, a range where several were measured.
    """
    families = get_args(Family)
    lines = []
    for name in sorted(names(), key=lambda name: (families.index(find(name).family), name)):
        method = find(name)
        summary = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
        differences = sorted({line["difference"] for line in stored.measured(name)}, key=float)
        lines.append(
            [
                f"`{name}`",
                summary.removesuffix("."),
                "needed" if method.rehearses else "none",
                " to ".join(dict.fromkeys([differences[0], differences[-1]]))
                if differences
                else "-",
            ]
        )
    return tables.markdown(
        ("method", "what it does", "old rows", "OP - sequential"), lines, texts=3
    )


def with_tables(text: str) -> str:
    """`text` with what stands between the markers made anew from the result files."""
    tables = {
        "method_list": method_list(),
        "standard_cl": standard_cl_table.markdown(results("standard_cl")["summary"]),
        "methods": methods_table.markdown(results("methods")["summary"]),
        "standard_cl_why": probes(results("standard_cl_why")["records"]),
        "long_sequence": long_sequence_table.methods(results("long_sequence")["summary"]),
        "long_sequence_trials": long_sequence_table.trials(results("long_sequence")["trials"]),
        "long_sequence_why": long_sequence_table.alike(results("long_sequence_why")["records"]),
        "defaults": defaults.markdown(results("defaults")["records"]),
        "ablation": long_sequence_table.ablation(results("long_sequence")["summary"]),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name}:[^>]*-->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    summarize_again()
    measured.FILE.write_text(measured.measured(results("methods")["summary"]), encoding="utf-8")
    records = results("long_sequence")["records"]
    compared = [r for r in records if r["method"] not in long_sequence_table.PUBLISHED]
    pictures = {
        "methods": picture.picture(results("methods")["records"], "OP of every method"),
        "long_sequence": picture.picture(compared, "OP after fifteen tasks"),
    }
    for name, drawn in pictures.items():
        (DOCS / f"{name}.svg").write_text(drawn, encoding="utf-8")
    for path in READMES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
