"""A base is pinned by its files, and on the hub by its commit."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from command import perdure
from perdure import Lineage, PerdureError
from perdure.models.base import load_config_and_tokenizer
from perdure.models.pins import check_pin, differing, pin
from place import setting_for
from tiny import save_tiny


pytestmark = pytest.mark.own


OLD, NEW = "a" * 40, "b" * 40


def test_a_changed_file_is_named_and_what_lies_beside_does_not_matter(tmp_path):
    pinned = pin(str(save_tiny("causal", tmp_path)))
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "more.json").write_text("{}")
    check_pin(pinned)
    (tmp_path / "config.json").write_text("{}")
    assert differing(pinned, pin(str(tmp_path))) == ["config.json"]
    with pytest.raises(PerdureError, match=r"config\.json differs; put its files back"):
        check_pin(pinned)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(PerdureError, match=r"config\.json differs and 1 more"):
        check_pin(pinned)


def test_a_base_without_safetensors_is_not_pinned(tmp_path):
    pinned = pin(str(save_tiny("causal", tmp_path)))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    for check in (lambda: pin(str(tmp_path)), lambda: check_pin(pinned)):
        with pytest.raises(PerdureError, match=r"pytorch_model\.bin is a pickle, which could run"):
            check()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(PerdureError, match="it has no weights; give a base with safetensors"):
        pin(str(tmp_path))


def commit(cache: Path, sha: str, seed: int) -> None:
    """A commit of me/tiny in the hub's cache, as a download leaves it, and main points to it."""
    repository = cache / "models--me--tiny"
    save_tiny("causal", repository / "snapshots" / sha, seed)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(sha)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache with one commit of me/tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit(tmp_path / "cache", OLD, seed=0)
    setting_for("causal", tmp_path)
    shutil.rmtree(tmp_path / "base")


def test_a_name_of_the_hub_stays_at_the_commit_it_was_pinned_to(hub, tmp_path):
    learn = ("learn", "m", "colour", "colour-train.jsonl", "--test", "colour-test.jsonl")
    result = perdure("init", "m", "--base", "me/tiny", "max_completion_length=4")
    assert result.status == 0, result.err
    settings = yaml.safe_load((tmp_path / "m" / "lineage.yaml").read_text())
    assert settings["base"]["revision"] == OLD
    assert set(settings["base"]["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    commit(tmp_path / "cache", NEW, seed=1)  # main moves on; the lineage does not
    assert perdure(*learn).status == 0
    assert perdure("verify", "m").status == 0
    card = (tmp_path / "m" / Lineage("m").stages[0]["folder"] / "README.md").read_text()
    assert "base_model: me/tiny" in card
    moved = perdure("rebase", "m", "me/tiny", "--revision", NEW)
    assert moved.status == 2
    assert "not the base of m: model.safetensors differs" in moved.err
    shutil.copytree(tmp_path / "cache/models--me--tiny/snapshots" / OLD, tmp_path / "copy")
    assert perdure("rebase", "m", "copy").status == 0
    assert perdure("evaluate", "m").status == 0


def test_a_commit_that_is_not_there_is_told(hub):
    wrong = perdure("init", "m", "--base", "me/tiny", f"revision={NEW}")
    assert wrong.status == 2
    assert wrong.err.startswith("perdure: error: base 'me/tiny': no model could be loaded")


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("ledger.jsonl", "it is a lineage, and `perdure export here FOLDER` writes its newest"),
        ("adapter_config.json", "it is an adapter: give the model that it was trained on"),
        ("notes.txt", "did you mean 'there'?"),
    ],
)
def test_a_folder_that_is_no_model_is_told_what_it_is(tmp_path, monkeypatch, file, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / file).touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").touch()
    with pytest.raises(PerdureError, match=re.escape(hint)):
        load_config_and_tokenizer("here")


def test_a_template_that_was_added_to_a_folder_is_a_difference(tmp_path):
    save_tiny("causal", tmp_path)
    pinned = pin(str(tmp_path))
    (tmp_path / "notes.txt").write_text("of the user")
    assert differing(pinned, pin(str(tmp_path))) == []
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert differing(pinned, pin(str(tmp_path))) == ["chat_template.jinja"]
    # In the hub's cache, a file of the same commit may have been fetched since.
    assert differing(pinned, {**pin(str(tmp_path)), "revision": "0" * 40}) == []
