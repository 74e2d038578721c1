"""A verb that can no longer write: one line, nothing unfinished, and the same command goes on."""

import random
import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import disk


pytestmark = pytest.mark.own

MOST = {"init": 2, "set": 3, "export": 1, "run": 6}  # at how many operations, and sizes of files


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return disk.original(tmp_path_factory.mktemp("disk") / "original")


@pytest.fixture(scope="module")
def operations():
    failing = disk.Failing("")
    yield failing
    failing.stop()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "verb",
    ["init", "set", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("export", "run"))],
)
def test_a_fault_is_one_line_and_the_same_command_goes_on(verb, original, operations):
    generator = random.Random(verb)
    outcomes = list(disk.outcomes(original, verb, operations, MOST[verb], generator))
    assert outcomes
    assert [(o.fault, o.problems) for o in outcomes if o.problems] == []
