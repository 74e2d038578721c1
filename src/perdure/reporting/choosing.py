"""What to take for which model and data, with the measured numbers behind it.

`python benchmarks/tables.py` makes `choosing.json`, next to this file, from the result files.
"""

import json
from importlib.resources import files
from typing import Any


def recommended() -> list[dict[str, Any]]:
    """Return the lines, for a `kind` of model: `when`, and what to `take`.

    `number` is what decides, in short, `because` has the numbers beside it, and `files` where they
    are.
    """
    text = (files("perdure.reporting") / "choosing.json").read_text(encoding="utf-8")
    return json.loads(text)
