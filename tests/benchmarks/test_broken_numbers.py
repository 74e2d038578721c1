"""A loss, a gradient or a weight that is not finite stops each method at its step."""

import math
import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import broken_numbers


pytestmark = pytest.mark.own
QUICK = ("recurrent_kif",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return broken_numbers.workplace(tmp_path_factory.mktemp("numbers") / "place")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in broken_numbers.method_names()
    ],
)
def test_a_broken_number_is_found_at_its_step(method, place):
    outcomes = list(broken_numbers.outcomes(method, {"nan": math.nan}, place))
    assert [outcome for outcome in outcomes if outcome.is_wrong] == []
    assert sum(outcome.verdict != "not reached" for outcome in outcomes) >= 3
