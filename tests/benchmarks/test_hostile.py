"""What a stranger plants in a lineage, a base or a comparison reaches nothing outside of it."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import hostile


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return hostile.make_place(tmp_path_factory.mktemp("hostile") / "original")


@pytest.mark.parametrize("attack", hostile.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_or_harmless(attack, original, tmp_path):
    outcome = hostile.outcome(attack, hostile.copy_of(original, tmp_path / "place"))
    assert outcome.is_safe, outcome
    if outcome.what == "refused" and attack.command[0] != "verify":
        assert outcome.status == 2
        assert outcome.line.startswith("perdure: error: ")
