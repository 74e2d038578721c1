"""The grids of the paper's setting, tried as they are but for their size."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from command import perdure, tree
from perdure.comparison.grid import read_grid
from perdure.data.benchmarks import ORDERS, TASKS, superni
from tiny import save_tiny


pytestmark = pytest.mark.own

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
GRIDS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALL = ["max_length=32", "max_completion_length=8", "training.num_train_epochs=1"]
SMALL += ["training.bf16=false", "quantization=null"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made-up rows in the folders of both benchmarks."""
    place = tmp_path_factory.mktemp("data")
    for task in TASKS:
        folder = place / ("superni" if task in superni.TASKS else "long_sequence") / task
        folder.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            rows = [
                {
                    "prompt": f"Choose. Option: red, blue.\nthe colour {i} of {task}\nAnswer:",
                    "completion": ("red", "blue")[i % 2],
                }
                for i in range(50 if split == "train" else 2)
            ]
            with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    for kind in ("causal", "seq2seq"):
        save_tiny(kind, place / kind)
    return place


def test_every_base_has_all_three_benchmarks():
    bases = ("llama2_13b", "llama2_7b", "qwen3_0.6b", "t5_large")
    parts = ("long_sequence", "standard", "superni")
    assert sorted(f"{base}-{part}" for base in bases for part in parts) == GRIDS


ALL_LINES = (
    "t5_large-standard"  # llama2_7b-standard has the same; of the others two lines are tried
)
IN_EVERY_RUN = ("qwen3_0.6b-long_sequence", "qwen3_0.6b-superni")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow) for name in GRIDS],
)
def test_a_dry_run_finds_nothing_to_mend(name, data, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for order, tasks in ORDERS.items():
        monkeypatch.setitem(ORDERS, order, tasks[:2])
    whole = name == ALL_LINES
    base = bases / ("seq2seq" if name.startswith("t5") else "causal")
    few = ["grid.method={recurrent_kif_paper: recurrent_kif, replay: replay}", "published=null"]
    command = ("compare", FOLDER / f"{name}.yaml", f"base={base}", *SMALL, *([] if whole else few))
    result = perdure(*command, "--data", data, "--dry-run", "--json")
    assert result.status == 0, result.err
    assert "a train row" in result.err
    assert "a dev row" not in result.err  # those of a benchmark are not measured unless asked for
    plan = result.json
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    orders, seeds = (settings["grid"][key] for key in ("tasks", "seed"))
    assert len(plan["lines"]) == (len(settings["grid"]["method"]) if whole else 2)
    assert {line["cells"] for line in plan["lines"]} == {len(orders) * len(seeds)}
    assert all(line["steps"] > 0 for line in plan["lines"])
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_published_names_lines_of_the_grid(name):
    grid = read_grid(FOLDER / f"{name}.yaml")
    assert set(grid.published) <= {line.name for line in grid.lines}
    assert grid.choose is None
    assert [line.settings["memory"] for line in grid.lines] == [{"ratio": 0.02}] * len(grid.lines)
