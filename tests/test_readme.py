"""What the README says is what the files say."""

import json
from pathlib import Path

import pytest
import yaml

from perdure.config import load_config
from perdure.methods import make


pytestmark = pytest.mark.own


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_made_from_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    for path in tables.PAGES:
        text = path.read_text(encoding="utf-8")
        assert "\n| ---" in text
        assert tables.with_tables(text) == text
    for name, drawn in tables.pictures().items():
        assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == drawn
    costs = tables.costs_of_methods(tables.results("methods")["records"])
    assert tables.COSTS.read_text(encoding="utf-8") == costs


def test_the_result_files_have_the_common_form():
    files = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for path in files:
        results = json.loads(path.read_text())
        wanted = {"benchmark", "command", "versions", "device", "date", "records"}
        assert wanted <= set(results), path.name
        assert results["records"], path.name


def test_the_yaml_is_one_that_a_run_takes():
    text = README.split("```yaml\n")[1].split("```")[0]
    config = load_config(yaml.safe_load(text))
    assert [method.name for method in make(config.method)] == ["recurrent_kif"]


def test_every_verb_of_the_command_line_stands_in_the_readme():
    from perdure.cli import VERBS

    for verb in VERBS:
        assert f"`perdure {verb}" in README


def test_the_quickstarts_settings_are_the_ones_of_the_makefile():
    config = load_config(ROOT / "examples" / "quickstart.yaml")
    assert config.tasks == "generated"
    assert "examples/quickstart.yaml" in (ROOT / "Makefile").read_text()
