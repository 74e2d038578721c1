"""The lines of the benchmarks' tables."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import defaults
import tables

from engram.methods import make


pytestmark = pytest.mark.own


def test_a_table_is_markdown():
    assert tables.markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def cells(*values: float, seed: int = 0) -> dict:
    """A cell an order."""
    return {(order, seed): value for order, value in enumerate(values, 1)}


def test_a_spread_of_one_value_has_no_deviation():
    assert tables.spread_text(tables.spread(cells(0.5)), ".3f") == "0.500"
    assert tables.spread_text(tables.spread(cells(0.4, 0.6)), "+.3f") == "+0.500 ± 0.141"
    assert tables.spread_text(tables.spread({}), ".3f") == "-"


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        (cells(0.3, 0.3, 0.3001), "+0.200 [+0.200, +0.200]"),
        (cells(0.4, 0.0, 0.2), "+0.100 [-0.397, +0.597] (noise)"),
        (cells(0.4, 0.0), "+0.100"),  # of two orders there is no interval
        ({(1, 0): 0.3, (1, 9): 0.9}, "+0.200"),
        ({(9, 0): 0.9}, "-"),
    ],
)
def test_a_difference_is_of_common_pairs_and_says_when_it_is_noise(ours, told):
    assert tables.difference_text(tables.difference(ours, cells(0.1, 0.1, 0.1))) == told
    assert tables.difference_text(None) == "-"


def test_what_differs_after_holms_correction_is_marked():
    plain = cells(0.1, 0.1, 0.1)
    near, far = cells(0.2, 0.21, 0.24), cells(0.3, 0.3, 0.3001)
    entries = [{"to": tables.difference(ours, plain)} for ours in (near, far)]
    tables.correct(entries, "to")
    assert [entry["to"]["differs"] for entry in entries] == [True, True]
    entries += [{"to": tables.difference(cells(0.4, 0.0, 0.2), plain)}, {}]
    tables.correct(entries, "to")  # one more comparison, and less survives
    told = [tables.difference_text(entry.get("to")) for entry in entries]
    assert told[0] == "+0.117 [+0.065, +0.168]" + " *" * (entries[0]["to"]["p_holm"] < 0.05)
    assert told[1] == "+0.200 [+0.200, +0.200] *"
    assert told[2:] == ["+0.100 [-0.397, +0.597] (noise)", "-"]


@pytest.mark.parametrize("method", defaults.SWEEPS)
def test_the_first_value_that_was_tried_is_the_default(method):
    key, tried = defaults.SWEEPS[method]
    made = make(method)[0]
    value = made.memory_steps.rate if key == "learning_rate" else getattr(made, key)
    assert value == tried[0]


def test_defaults_line_up_both_bases():
    cells = [("minilm", 0.5), ("minilm", 0.7), ("smollm2", 0.2)]
    records = [
        {"base": base, "method": '{"ewc": {"strength": 1.0}}', "overall": op}
        | {"backward_transfer": -0.1, "learning_accuracy": 0.8}
        for base, op in cells
    ]
    *_, line = defaults.markdown(records).splitlines()
    assert line == (
        "| `{ewc: {strength: 1.0}}` | 0.600 | -0.100 | 0.800 | 2 | 0.200 | -0.100 | 0.800 | 1 |"
    )
