"""What a stranger plants in a lineage, a base or a comparison reaches nothing outside of it."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import hostile
from attacks import ATTACKS


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return hostile.make_place(tmp_path_factory.mktemp("hostile") / "original")


# They load or train a model, and show of the same guard what a cheaper one does.
SLOW = {
    "a_checkpoint_is_a_link",
    "the_next_stage_is_a_link",
    "logs_is_a_link",
    "an_adapters_tokenizer_brings_code",
    "a_new_lineage_has_a_link_for_its_ledger",
    "an_unfinished_export_is_a_link",
    "the_logs_of_a_run_are_a_link",
    "a_model_brings_code",
    "a_base_brings_its_own_generate",
    "a_lineage_has_a_name_that_a_page_would_obey",
}


def marked(attack):
    marks = pytest.mark.slow if attack.name in SLOW else ()
    return pytest.param(attack, marks=marks, id=attack.name)


@pytest.mark.parametrize("attack", [marked(attack) for attack in ATTACKS])
def test_an_attack_is_refused_or_harmless(attack, original, tmp_path):
    outcome = hostile.outcome(attack, hostile.copy_of(original, tmp_path / "place"))
    assert outcome.is_safe, outcome
    if outcome.what == "refused" and attack.command[0] != "verify":
        assert outcome.status == 2
        assert outcome.line.startswith("perdure: error: ")
