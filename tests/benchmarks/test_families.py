"""Every architecture learns, scores the same alone and in a batch and exports, or is refused."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import families_table as families
from architectures import ARCHITECTURES


# In every run: a decoder, an encoder and an encoder-decoder. Slow are those whose attention looks
# back only so far, those with experts, and recurrent ones.
ALWAYS = ("llama", "bert", "bart")


def check(name, folder):
    result = families.evaluate_family(name, folder)
    assert result.right, result
    return result


@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALWAYS)
def test_some_architectures_do_all_that_they_should(name, tmp_path):
    assert not check(name, tmp_path).refused


@pytest.mark.slow
@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ALWAYS])
def test_an_architecture_does_all_that_it_should_or_is_refused(name, tmp_path):
    check(name, tmp_path)


def test_the_table_has_a_line_for_each():
    accepted = families.Family("a", "causal", 2.0, 0.1, 1.0, "any", True, 1e-6, 1e-7)
    refused = families.Family("b", "encoder", refused="base: it cannot be run")
    page = families.table([accepted, refused])
    assert "| a | causal | 2.00 to 0.10 | 1.00 | any | 1e-06 | 1e-07 |" in page
    assert "| b | encoder | base: it cannot be run |" in page
    assert accepted.right
    assert refused.right
