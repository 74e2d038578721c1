"""Puts the result files' tables into the README.

python benchmarks/readme.py           # write
"""

import json
import re
from pathlib import Path

from standard_cl_table import markdown


HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def with_tables(text: str) -> str:
    """`text` with what stands between the markers made anew from the result files."""
    summary = json.loads((HERE / "results" / "standard_cl.json").read_text())["summary"]
    pattern = r"(<!-- standard_cl:[^>]*-->\n).*?(<!-- /standard_cl -->)"
    return re.sub(pattern, lambda m: m[1] + markdown(summary) + "\n" + m[2], text, flags=re.S)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
