"""What the cells of a line have lost."""

import re

import pytest

from command import perdure
from comparison.grids import grid_yaml, run_here
from perdure.comparison import processes
from perdure.comparison.summary import lost


pytestmark = pytest.mark.own

GENERAL = {"passed_by_reference": 20, "rows": 56, "p": 0.01}


def test_losses_are_summed_over_the_cells_that_measured_them():
    records = [
        {
            "lost_tasks": ["a", "b"],
            "general": {**GENERAL, "fell": 8, "rose": 1, "kl": 1.0, "lost": True, "judged": True},
        },
        {
            "lost_tasks": [],
            "general": {**GENERAL, "fell": 2, "rose": 3, "kl": 0.5, "lost": False, "judged": True},
        },
        {
            "lost_tasks": None,
            "general": {
                **GENERAL,
                "fell": 1,
                "rose": 0,
                "kl": None,
                "lost": False,
                "judged": False,
            },
        },
        {"lost_tasks": None, "general": None},
    ]
    assert lost(records) == {
        "tasks": 2,
        "general": 1,
        "judged": 2,
        "passed_by_reference": 60,
        "fell": 11,
        "rose": 4,
        "kl": 0.75,
    }
    unknown = dict.fromkeys(("tasks", "general", "passed_by_reference", "fell", "rose", "kl"))
    assert lost(records[3:]) == {**unknown, "judged": 0}


def test_a_comparison_says_what_was_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "start", run_here)
    more = {"grid": {"method": ["sequential", "constant"]}, "guard": {"limit": 7}}
    result = perdure("compare", grid_yaml(tmp_path, **more))
    assert result.status == 0, result.err
    (heads,) = re.findall(r"^ method +learned .*$", result.out, re.MULTILINE)
    assert re.split(r" {2,}", heads.strip()) == [
        *("method", "learned", "tasks lost", "general ability lost", "checks that fell", "rose"),
        "KL",
    ]
    sequential, constant = perdure("compare", tmp_path / "grid.yaml", "--json").json["cells"]
    assert sequential["lost_tasks"] in ([], ["colour"])
    assert sequential["general"]["rows"] == 7
    assert sequential["general"]["kl"] > 0
    assert (constant["lost_tasks"], constant["general"]) == (None, None)
