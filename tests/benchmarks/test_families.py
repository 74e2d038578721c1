"""Every architecture learns, scores the same alone and in a batch and exports, or is refused."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import families_table as families
from architectures import ARCHITECTURES


def check(name, folder):
    result = families.family(name, folder)
    assert result.right, result


@pytest.mark.slow
@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_does_all_that_it_should_or_is_refused(name, tmp_path):
    check(name, tmp_path)


def test_the_table_has_a_line_for_each():
    done = families.Family("a", "causal", 2.0, 0.1, 1.0, "any", True, 1e-6, 1e-7)
    refused = families.Family("b", "encoder", refused="base: it cannot be run")
    page = families.table([done, refused])
    assert "| a | causal | 2.00 to 0.10 | any | 1e-06 | 1e-07 |" in page
    assert "| b | encoder | base: it cannot be run |" in page
    assert done.right
    assert refused.right
