"""The folder of a lineage: the user's links on the way to it, and the modes of its files."""

import json
import os
from pathlib import Path

import pytest

from command import perdure, workplace
from data.hub_folder import write_dataset
from perdure.api import evaluate
from perdure.lineage.files import relative
from perdure.lineage.lineage import Lineage
from tiny import tiny_rows


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a lineage of one stage, which was made and learned through a link."""
    folder = tmp_path_factory.mktemp("real")
    link = tmp_path_factory.mktemp("links") / "way"
    link.symlink_to(folder)
    workplace(link)
    earlier = os.umask(0o027)
    try:
        perdure("init", link / "lineage", f"base={link}/base", "adapter={r: 2}", "threads=1")
        learned = perdure("learn", link / "lineage", "colour", link / "colour.jsonl")
    finally:
        os.umask(earlier)
    assert learned.status == 0, learned.err
    return link


def test_files_have_the_modes_that_the_umask_allows(place, tmp_path):
    """The first test: later ones write files of the lineage under another umask."""
    lineage = place / "lineage"
    modes = {p.name: p.stat().st_mode & 0o777 for p in lineage.rglob("*") if p.is_file()}
    assert set(modes.values()) == {0o640}, modes
    assert perdure("export", lineage, tmp_path / "merged").status == 0
    usual = os.umask(0)
    os.umask(usual)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "merged").iterdir()}
    assert set(modes.values()) == {0o666 & ~usual}, modes


def test_a_lineage_is_reached_through_links_of_the_user(place, tmp_path):
    (tmp_path / "mine").symlink_to(place / "lineage")
    for folder in (place / "lineage", tmp_path / "mine"):
        assert perdure("verify", folder).status == 0
    reverted = perdure("revert", tmp_path / "mine")
    assert reverted.status == 0, reverted.err
    assert Lineage(place / "lineage").head == 0
    perdure("revert", tmp_path / "mine", "--to", 1)


def test_a_link_that_is_not_the_lineages_own_is_left_alone(place):
    (place / "lineage" / "rows").symlink_to(place)
    assert perdure("log", place / "lineage").status == 0
    (place / "lineage" / "rows").unlink()


def test_a_link_in_a_stage_is_a_problem_that_verify_lists(place):
    scores = next((place / "lineage").glob("stages/0001-*")) / "scores.json"
    text = scores.read_text()
    scores.rename(place / "scores.json")
    scores.symlink_to(place / "scores.json")
    result = perdure("verify", place / "lineage", "--json")
    assert result.status == 1
    [problem] = json.loads(result.out)["problems"]
    assert problem.startswith(f"{scores}: is a symbolic link")
    scores.unlink()
    Path(place / "scores.json").rename(scores)
    assert scores.read_text() == text


def test_a_folder_in_the_place_of_the_next_stage_is_not_replaced(place):
    """A run that stopped after it renamed the stage leaves one too, but also a `.work` folder."""
    foreign = place / "lineage" / "stages" / "0002-animal"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    result = perdure("learn", place / "lineage", "animal", place / "animal.jsonl")
    assert result.status == 2
    assert f"{foreign}: is in the place of the next stage" in result.err
    assert (foreign / "mine.txt").read_text() == "mine"
    (place / "lineage" / ".work" / "0002-animal-1234").mkdir(parents=True)
    assert perdure("learn", place / "lineage", "animal", place / "animal.jsonl").status == 0
    assert not (foreign / "mine.txt").exists()


def test_rows_are_found_again_when_the_lineage_is_reached_through_a_link(tmp_path, monkeypatch):
    """`..` after a link is the folder above its target."""
    home, scratch = tmp_path / "home", tmp_path / "disks" / "scratch"
    scratch.mkdir(parents=True)
    home.mkdir()
    workplace(home)
    (home / "link").symlink_to(scratch)
    monkeypatch.chdir(home)
    write_dataset(home / "rows" / "animal", {"train": tiny_rows("animal", 8)})
    made = perdure("init", "link/lineage", "--base", home / "base", "adapter={r: 2}", "threads=1")
    assert made.status == 0, made.err
    for name, test in (("colour", "colour-test.jsonl"), ("animal", "hub:./rows/animal:train")):
        learn = perdure("learn", "link/lineage", name, f"{name}.jsonl", "--test", test)
        assert learn.status == 0, learn.err
    monkeypatch.chdir(scratch)
    lines: list[str] = []
    scores = evaluate("lineage", say=lines.append)
    assert None not in (scores["colour"]["score"], scores["animal"]["score"]), lines
    assert not [line for line in lines if "not scored" in line]


def test_a_relative_path_leads_where_it_should(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "named.jsonl").symlink_to(tmp_path / "rows.jsonl")
    for path in ("rows.jsonl", "named.jsonl", "a", "link"):
        written = relative(tmp_path / path, tmp_path / "link")
        assert (tmp_path / "link" / written).samefile(tmp_path / path)
    assert relative(tmp_path / "named.jsonl", tmp_path) == "named.jsonl"
    assert relative(tmp_path / "a" / "..", tmp_path / "a") == ".."


def test_no_lineage_is_made_in_place_of_a_link_to_nothing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    made = perdure("init", tmp_path / "link", "--base", "default")
    assert made.status == 2
    assert (
        made.err
        == f"perdure: error: {tmp_path}/link: is a link to what is not there; give another place\n"
    )
