"""`check`: general ability of models and of the stages of a lineage, on tiny models."""

import json
from pathlib import Path

import pytest
from asked_files import ROWS, adapter_on, broken

import perdure as package
from command import perdure, refused, tree, write_rows
from perdure import PerdureError
from tiny import save_tiny


pytestmark = pytest.mark.own

causal = pytest.mark.parametrize("kind", ["causal"])
KEYS = ["reference", "model", "chat_template", "system", "lost", "judged", "rows"]
KEYS += ["passed_by_reference", "passed", "fell", "rose", "p", "net", "skills", "before", "now"]
KEYS += ["flips", "kl", "same_vocabulary", "verdict"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A base, and rows whose checks its answers pass."""
    monkeypatch.chdir(tmp_path)
    save_tiny("causal", Path("base"))
    write_rows(Path("rows.jsonl"), ROWS)
    return tmp_path


def test_a_copy_has_lost_nothing(here):
    save_tiny("causal", here / "copy")
    before = tree(here)
    result = perdure("check", "copy", "--against", "base", "--rows", "rows.jsonl", "--tokens", 4)
    assert result.status == 0, result.err
    assert "base passes 12 of 12 checks, and all of these still pass: nothing lost" in result.out
    assert "KL from base: 0.000 nats per token of its answers" in result.out
    assert tree(here) == before


def test_a_broken_model_has_lost_it_and_the_status_says_so(here):
    broken(here / "broken")
    result = perdure("check", "broken", "--against", "base", "--rows", "rows.jsonl", "--tokens", 4)
    assert result.status == 3, result.err
    lost = "general ability: 12 of 12 checks that base passes now fail (up 6, down 6), p = 0.00024"
    assert f"{lost}: lost" in result.out
    assert "now:    (empty)" in result.out
    assert "... and 7 more" in result.out


def test_python_and_json_have_the_same(here):
    broken(here / "broken")
    arguments = ("broken", "--against", "base", "--rows", "rows.jsonl", "--limit", 8, "--tokens", 4)
    printed = perdure("check", *arguments, "--json")
    assert printed.status == 3
    result = package.check("broken", against="base", rows=ROWS, limit=8, max_new_tokens=4)
    assert printed.json == result
    assert list(result) == KEYS
    assert (result["rows"], result["fell"]) == (8, 8)
    assert {counts["rows"] for counts in result["skills"].values()} == {4}


def test_an_adapter_is_compared_with_the_base_that_it_names(here):
    adapter_on(here / "base", here / "adapter")
    alone = package.check("adapter", rows=ROWS, max_new_tokens=4)
    assert alone["reference"] == f"the base {here / 'base'}"
    assert alone["model"] == "adapter"
    assert alone["kl"] > 0
    named = package.check("adapter", against="base", rows=ROWS, max_new_tokens=4)
    same = ("flips", "p", "before", "now", "skills")
    assert [alone[key] for key in same] == [named[key] for key in same]
    assert alone["kl"] == pytest.approx(named["kl"])


def test_the_bundled_rows_are_asked_by_default(here):
    save_tiny("causal", here / "copy")
    result = package.check("copy", against="base", limit=14, max_new_tokens=1)
    assert set(result["skills"]) > {"facts", "refusals"}
    assert result["rows"] == 14


def test_a_model_saved_without_its_template_is_asked_in_the_bases(here):
    tokenizer_file = here / "base" / "tokenizer_config.json"
    save_tiny("causal", here / "copy")
    settings = json.loads(tokenizer_file.read_text())
    template = "{% for m in messages %}{{ m['content'] }} . {% endfor %}"
    tokenizer_file.write_text(json.dumps({**settings, "chat_template": template}))
    notes = []
    result = package.check(
        "copy", against="base", rows=ROWS, system="good", max_new_tokens=2, say=notes.append
    )
    assert result["chat_template"]
    assert result["kl"] == 0
    assert notes == ["note: copy has no chat template and is asked in that of base"]


def test_a_base_that_cannot_do_the_checks_is_not_judged(here):
    rows = [{**row, "check": {"says": ["zebra"]}} for row in ROWS]
    write_rows(here / "hard.jsonl", rows)
    broken(here / "broken")
    result = perdure("check", "broken", "--against", "base", "--rows", "hard.jsonl", "--tokens", 4)
    assert result.status == 0
    assert "not judged, because base itself passes only 0 of 12 checks" in result.out
    assert "nats per token" in result.out


@pytest.mark.parametrize("kind", ["causal", pytest.param("seq2seq", marks=pytest.mark.slow)])
def test_a_stage_is_compared_with_the_base_or_another_stage(place):
    before = tree(place)
    newest = package.check("lineage", rows=ROWS, max_new_tokens=4)
    assert (newest["reference"], newest["model"]) == ("the base", "stage 2")
    assert newest["kl"] > 0
    assert newest == package.check("lineage", "0", stage=2, rows=ROWS, max_new_tokens=4)
    first = package.check("lineage", 1, stage=2, rows=ROWS, max_new_tokens=4)
    assert (first["reference"], first["model"]) == ("stage 1", "stage 2")
    assert first["kl"] != newest["kl"]
    base = package.check("lineage", "base", rows=ROWS, max_new_tokens=4)
    assert base["flips"] == newest["flips"]
    assert base["kl"] == pytest.approx(newest["kl"], rel=1e-4)
    assert tree(place) == before


@causal
def test_a_stage_of_whole_weights_is_compared_with_the_base(whole_place):
    result = package.check("lineage", rows=ROWS, max_new_tokens=4)
    assert (result["reference"], result["model"]) == ("the base", "stage 2")
    assert result["kl"] > 0


@causal
def test_a_stage_is_not_compared_with_itself(place):
    refused(place, "check", "lineage", "--against", 2, names=("stage 2", "itself"))
    refused(place, "check", "lineage", "--stage", 0, names=("stage 0", "itself"))
    refused(place, "check", "lineage", "--stage", 9, names=("no stage 9",))
    refused(place, "check", "lineage", "--against", 9, names=("no stage 9",))


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_is_refused(place):
    refused(place, "check", "lineage", names=("lineage: its base is an encoder",))
    refused(place, "check", "base", "--against", "base", names=("an encoder cannot generate",))


def test_mistakes_are_one_line(here):
    adapter_on(here / "base", here / "adapter")
    refused(here, "check", "base", names=("base: give the model to compare it with", "--against"))
    refused(here, "check", "base", "--stage", 1, "--against", "base", names=("no lineage.yaml",))
    refused(here, "check", "nothing", "--against", "base", names=("'nothing'",))
    refused(here, "check", "adapter", "--against", "nothing", names=("'nothing'",))
    refused(here, "check", "adapter", "--limit", 0, names=("at least 1",))
    refused(here, "check", "adapter", "--tokens", 0, names=("at least 1 token",))
    refused(here, "check", "adapter", "--rows", "row.jsonl", names=("did you mean 'rows.jsonl'",))
    write_rows(here / "wrong.jsonl", [{"prompt": "Hi", "check": {"say": ["Hi"]}}])
    refused(here, "check", "adapter", "--rows", "wrong.jsonl", names=("wrong.jsonl, row 1", "says"))


def test_a_system_prompt_needs_a_template_that_takes_one(here):
    settings = json.loads((here / "base" / "tokenizer_config.json").read_text())
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['content'] }} {% endfor %}"
    )
    (here / "base" / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template})
    )
    adapter_on(here / "base", here / "adapter")
    refused(here, "check", "adapter", "--system", "good", names=("the rows, row 1", "no system"))
    with pytest.raises(PerdureError, match="no system"):
        package.check("adapter", system="good", rows=ROWS)


def test_a_path_without_a_model_is_named(here):
    for name in ("nothing", "rows.jsonl"):
        refused(here, "check", name, names=(f"{name}: no such folder",))


@pytest.mark.parametrize("changed", ["init_lora_weights", "bias"])
def test_an_adapter_that_changes_its_base_is_compared_with_the_base_itself(here, changed):
    """Without its adapter, the loaded network is not the base then."""
    adapter_on(here / "base", here / "adapter")
    settings = here / "adapter" / "adapter_config.json"
    value = {"init_lora_weights": "pissa", "bias": "all"}[changed]
    settings.write_text(json.dumps({**json.loads(settings.read_text()), changed: value}))
    alone = package.check("adapter", rows=ROWS, max_new_tokens=4)
    save_tiny("causal", here / "copy")
    other = package.check("adapter", against="copy", rows=ROWS, max_new_tokens=4)
    assert alone["reference"] == f"the base {here / 'base'}"
    assert [flip["before"] for flip in alone["flips"]] == [f["before"] for f in other["flips"]]
    assert alone["kl"] == other["kl"]


def test_what_is_no_model_is_told(here):
    (here / "notes").mkdir()
    for more in ((), ("--against", "base")):
        refused(here, "check", "notes", *more, names=("notes: no model is there",))
