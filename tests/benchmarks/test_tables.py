"""The lines of the benchmarks' tables."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import choosing
import defaults
import tables
from table_text import difference_text, markdown, spread_text

from perdure.comparison.grid import read_grid
from perdure.comparison.summary import difference, mark_what_differs, score
from perdure.config import load_config
from perdure.methods import keywords, make
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.reporting.choosing import recommended


pytestmark = pytest.mark.own

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_table_is_markdown():
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def cells(*values: float, seed: int = 0) -> dict:
    """A cell an order."""
    return {(order, seed): value for order, value in enumerate(values, 1)}


def test_a_spread_of_one_value_has_no_deviation():
    assert spread_text(score(cells(0.5)), ".3f") == "0.500"
    assert spread_text(score(cells(0.4, 0.6)), "+.3f") == "+0.500 ± 0.141"
    assert spread_text(score({}), ".3f") == "-"


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (cells(0.3, 0.3, 0.3001), "+0.200 [+0.200, +0.200]"),
        (cells(0.4, 0.0, 0.2), "+0.100 [-0.397, +0.597] (noise)"),
        (cells(0.4, 0.0), "+0.100"),  # of two orders there is no interval
        ({(1, 0): 0.3, (1, 9): 0.9}, "+0.200"),
        ({(9, 0): 0.9}, "-"),
    ],
)
def test_a_difference_is_of_common_pairs_and_says_when_it_is_noise(ours, text):
    assert difference_text(difference(ours, cells(0.1, 0.1, 0.1))) == text
    assert difference_text(None) == "-"


def test_what_differs_after_holms_correction_is_marked():
    plain = cells(0.1, 0.1, 0.1)
    near, far = cells(0.2, 0.21, 0.24), cells(0.3, 0.3, 0.3001)
    entries = [{"to": difference(ours, plain)} for ours in (near, far)]
    mark_what_differs([entry["to"] for entry in entries if "to" in entry])
    assert [entry["to"]["differs"] for entry in entries] == [True, True]
    entries += [{"to": difference(cells(0.4, 0.0, 0.2), plain)}, {}]
    mark_what_differs(
        [entry["to"] for entry in entries if "to" in entry]
    )  # one more comparison, and less survives
    texts = [difference_text(entry.get("to")) for entry in entries]
    assert texts[0] == "+0.117 [+0.065, +0.168]" + " *" * (entries[0]["to"]["p_holm"] < 0.05)
    assert texts[1] == "+0.200 [+0.200, +0.200] *"
    assert texts[2:] == ["+0.100 [-0.397, +0.597] (noise)", "-"]


@pytest.mark.parametrize("method", defaults.SWEEPS)
def test_the_first_value_that_was_tried_is_the_default(method):
    key, tried = defaults.SWEEPS[method]
    instance = make(method)[0]
    value = instance.memory_steps.rate if key == "learning_rate" else getattr(instance, key)
    assert value == tried[0]


def test_defaults_line_up_both_bases():
    ewc, plain = '{"ewc": {"strength": 1.0}}', '"sequential"'
    cells = [("minilm", ewc, 1, 0.5), ("minilm", ewc, 2, 0.7)]
    cells += [("smollm2", ewc, 1, 0.2), ("smollm2", plain, 1, 0.1), ("smollm2", plain, 2, 0.9)]
    records = [
        {"base": base, "method": method, "order": order, "overall": op}
        | {"backward_transfer": -0.1, "learning_accuracy": 0.8}
        for base, method, order, op in cells
    ]
    *_, without_minilm, line = defaults.markdown(records).splitlines()
    assert line == (
        "| `{ewc: {strength: 1.0}}` | 0.600 | -0.100 | 0.800 | 2 | 0.200 | -0.100 | 0.800 | 1 |"
    )
    # The second order of one line alone is left out, so that lines compare.
    assert without_minilm == "| `sequential` | - | - | - | 0 | 0.100 | -0.100 | 0.800 | 1 |"


def test_a_rate_that_a_grid_varies_is_that_of_its_records():
    records = tables.results("smollm2_assistant_screen")["records"]
    rates = [r["learning_rate"] for r in records if r["method"].startswith("sequential")]
    assert sorted(rates) == [1e-3, 2e-3]
    assert {r["learning_rate"] for r in records if not r["method"].startswith("seq")} == {2e-3}


def test_a_time_is_the_mean_over_cells_of_all_that_learning_takes():
    plain, short = {"seconds": 10.0, "cpu_seconds": 12.0}, {"seconds": 8.0}
    known = [({"cpu_seconds": 24.0, "seconds": 1.0}, plain), ({"cpu_seconds": 30.0}, short)]
    assert choosing.times(known) == (24.0 / 12.0 + 30.0 / (8.0 + 2.0)) / 2
    assert choosing.times([*known, ({"seconds": 90.0}, short)]) == choosing.times(known)
    assert choosing.times([({"seconds": 20.0}, plain), ({"seconds": 8.0}, short)]) == 1.5


def test_a_stream_in_several_orders_is_compared_with_the_default_order_by_order():
    def record(method: str, order: int, overall: float, fell: int) -> dict:
        general = {"fell": fell, "rose": 0, "passed_by_reference": 22, "kl": 0.5}
        general |= {"judged": True, "lost": False}
        scores = {"overall": overall, "learning_accuracy": 0.8, "flips": fell, "seconds": 60.0}
        about = {"method": method, "order": order, "seed": 0, "lost_tasks": ["a"]}
        return about | scores | {"general": general, "rehearses": True, "remembered_rows": 60}

    records = [record("replay_kl", order, 0.5, 10) for order in (1, 2, 3)]
    records += [record("other", order, 0.598 + order / 1000, 8 + order) for order in (1, 2, 3)]
    first, second = tables.carried_table(records).splitlines()[2:]
    assert first.startswith(
        "| `other` | 3 | 0.600 ± 0.001 | +0.100 [+0.098, +0.102] * | 0.800 ± 0.000 | 3 | "
        "30 of 66 | +0.0 [-2.5, +2.5] (noise) | 0.50 | 60 | 60 |"
    )
    assert second.split(" | ")[3] == "-"


def test_what_is_recommended_stands_on_the_result_files_and_can_be_taken():
    entries = recommended()
    assert entries == choosing.lines()  # `python benchmarks/tables.py` writes them
    for entry in entries:
        for file in entry["files"]:
            assert (FOLDER.parent / file).is_file()
        for key in ("number", "because"):
            assert any(character.isdigit() for character in entry[key])
        for take in entry["take"].split(" or "):
            if take != "LoRA" and not take.startswith(("mode:", "perdure ", choosing.IN_WORDS)):
                make(yaml.safe_load(take))


def test_the_numbers_of_a_recommendation_are_those_of_the_records():
    records = [r for r in tables.results("standard_cl")["records"] if r["method"] == "replay"]
    by_hand = sum(record["overall"] for record in records) / len(records)
    entry = next(e for e in recommended() if "standard_cl" in e["files"][0])
    assert f"OP {by_hand:.3f}" in entry["number"]
    assert f"OP {by_hand:.3f}" in entry["because"]


def test_the_preset_that_is_recommended_is_the_line_that_was_measured():
    grid = yaml.safe_load((FOLDER / "grids" / "smollm2_assistant.yaml").read_text())["grid"]
    measured = make(grid["method"]["kif_kl_lasting"])[0]
    taken = make({"recurrent_kif": yaml.safe_load(choosing.LASTING)})[0]
    assert isinstance(measured, RecurrentKIF)
    assert isinstance(taken, RecurrentKIF)
    assert measured.table == taken.table
    assert measured.outer_rows(4) == taken.outer_rows(4)  # the batches had 4 rows
    for key in {*keywords("recurrent_kif")} - {"fusion", "outer_batch_size", "outer_ratio"}:
        assert getattr(measured, key) == getattr(taken, key)


GRIDS = {
    "standard_cl": ["standard_cl"],
    "methods": ["methods", "methods_whole"],
    "long_sequence": ["long_sequence", "long_sequence_ablation"],
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_compare_what_was_published(name):
    """The same methods on the same orders and seeds, with the same trials."""
    published = tables.results(name)
    grids = [read_grid(FOLDER / "grids" / f"{grid}.yaml") for grid in GRIDS[name]]
    cells = [cell for grid in grids for line in grid.lines for cell in grid.cells(line, {})]
    assert sorted((cell.line, tables._order(cell.order), cell.seed) for cell in cells) == sorted(
        (record["method"], record["order"], record["seed"]) for record in published["records"]
    )
    choose = grids[0].choose
    assert choose
    setting = published.get("setting")
    if setting is None:  # the grid itself made it
        assert "--take" in published["command"]
        return
    assert choose.held_out == setting["held_out_rows"] / setting["train_rows"]
    for cell in cells:
        config = cell.config
        assert config.rows["train"] == setting["train_rows"]
        assert config.rows["test"] == setting["test_rows"]
        assert round(config.memory.ratio * setting["train_rows"]) == setting["memory_rows"]
        assert config.max_length == setting["max_length"]
        training = {**setting["training"]}
        batch = setting.get("batch", training["per_device_train_batch_size"])
        training["per_device_train_batch_size"] = batch
        assert training.items() <= config.training.items()


def test_records_are_taken_from_a_comparison(tmp_path):
    settings = {"adapter": None, "training": {"learning_rate": 0.1}}
    settings["lines"] = {"replay": {"memory.choose": "surprise"}}
    scores = {"overall": 0.5, "backward_transfer": None, "learning_accuracy": 0.6, "matrix": {}}
    counts = {"stored_bytes": 7, "stored_rows": 3, "mode": ["options"]}
    cell = {"line": "replay", "order": "standard_cl_2", "seed": 1, "name": "cell"}
    choice = {"key": "method.replay.ratio", "chosen": 2.0, "values": [1.0, 2.0]}
    compared = {
        "settings": settings,
        "lines": [{"name": "replay", "settings": "replay"}],
        "choose": {"replay": {**choice, "overall": [0.1, 0.2]}},
        "cells": [{**cell, **scores, **counts}],
    }
    spent = {"cells": {"cell": {"cpu_seconds": 4.0, "peak_memory_bytes": 2048}}}
    (tmp_path / "compare.json").write_text(json.dumps(compared))
    (tmp_path / "costs.json").write_text(json.dumps(spent))
    [record], trials = tables.taken(tmp_path)
    assert (record["method"], record["order"], record["seed"]) == ("replay", 2, 1)
    assert record["keywords"] == {"replay": {"ratio": 2.0}}
    assert record["changed"] == {"memory": {"choose": "surprise"}}
    assert (record["whole"], record["rehearses"], record["learning_rate"]) == (True, True, 0.1)
    assert (record["cpu_seconds"], record["peak_memory_kib"]) == (4.0, 2)
    assert [trial["overall"] for trial in trials] == [0.1, 0.2]
    assert [trial["keywords"]["replay"]["ratio"] for trial in trials] == [1.0, 2.0]


def test_lines_are_added_to_a_result_file(monkeypatch, tmp_path):
    """Lines of other methods stay, and those of the same method are replaced."""

    def written(adds: bool, *methods: str, overall: float) -> list[tuple[str, float]]:
        records = [{"method": method, "overall": overall} for method in methods]
        monkeypatch.setattr(tables, "taken", lambda folder: (records, []))
        tables.take("some", [tmp_path], adds=adds)
        found = tables.results("some")
        assert (" --add " if adds else " --take ") in found["command"]
        return [(record["method"], record["overall"]) for record in found["records"]]

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert written(False, "ewc", "er", overall=0.1) == [("ewc", 0.1), ("er", 0.1)]
    found = written(True, "er", "lwf", overall=0.2)
    assert found == [("ewc", 0.1), ("er", 0.2), ("lwf", 0.2)]


@pytest.mark.parametrize("file", sorted((FOLDER / "grids").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_grid_has_a_smaller_version(file):
    head = " ".join(line.lstrip("# ") for line in file.read_text().splitlines() if line[:1] == "#")
    found = re.search(r"A smaller version runs in minutes: add (\S+=.+?)(,|\.?$)", head)
    assert found, head
    overrides = shlex.split(found[1])
    if "grid" not in yaml.safe_load(file.read_text()):  # of `perdure run`
        assert load_config(file, overrides).rows["train"] <= 100
        return
    grid, small = read_grid(file), read_grid(file, overrides)
    assert [line.name for line in small.lines] == [line.name for line in grid.lines]
    (few, *_), (many, *_) = (g.cells(g.lines[0], {}) for g in (small, grid))
    assert few.config.rows["train"] <= 100
    assert few.config.rows["train"] < many.config.rows.get("train", 1000)
