"""No link is followed in a folder that may be a stranger's, and links on the way to it are."""

import os
from pathlib import Path

import pytest

import perdure
from perdure.disk import check_inner_links, check_new, check_tree, open_file, usual_modes
from perdure.errors import PerdureError
from perdure.lineage.files import write_text
from perdure.lineage.lineage import Lineage


pytestmark = pytest.mark.own


def test_a_file_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    for mode in ("r", "w", "a", "x", "r+b"):
        with pytest.raises(PerdureError, match="link: is a symbolic link"):
            open_file(tmp_path / "link", mode)
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(PerdureError, match="dangling: is a symbolic link"):
        open_file(tmp_path / "dangling", "a")
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("mode", ["r", "w", "a"])
def test_a_pipe_is_refused_at_once(tmp_path, mode):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PerdureError, match="pipe: is not a file"):
        open_file(tmp_path / "pipe", mode)


def test_links_and_pipes_at_any_depth_are_found(tmp_path):
    deep = tmp_path / "folder" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_text("")
    check_tree(tmp_path / "folder")
    (tmp_path / "way").symlink_to("folder")
    check_tree(tmp_path / "way" / "deep")  # a link on the way to the folder is the user's
    with pytest.raises(PerdureError, match="way: is a symbolic link"):
        check_tree(tmp_path / "way")
    os.mkfifo(deep / "pipe")
    with pytest.raises(PerdureError, match="pipe: is not a file"):
        check_tree(tmp_path / "folder")
    (deep / "pipe").unlink()
    (deep / "link").symlink_to("file")
    with pytest.raises(PerdureError, match="deep/link: is a symbolic link"):
        check_tree(tmp_path / "folder")


def test_a_link_may_stay_inside_where_other_tools_make_some(tmp_path):
    (tmp_path / "logs" / "run").mkdir(parents=True)
    (tmp_path / "logs" / "latest").symlink_to("run")
    check_inner_links(tmp_path / "logs")
    (tmp_path / "logs" / "run" / "out").symlink_to("../../elsewhere")
    with pytest.raises(PerdureError, match="out: is a symbolic link"):
        check_inner_links(tmp_path / "logs")


def test_a_text_takes_the_place_of_links_and_leaves_what_they_point_to(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("page", ".page.new"):
        (tmp_path / name).symlink_to("target")
    write_text(tmp_path / "page", "text")
    assert (tmp_path / "page").read_text() == "text"
    assert not (tmp_path / "page").is_symlink()
    assert target.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page", "target"]


def test_files_get_the_mode_of_their_folder(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o007, 0o660), (0o077, 0o600)):
        earlier = os.umask(mask)
        try:
            folder = tmp_path / f"{mask:o}"
            (folder / "inner").mkdir(parents=True)
        finally:
            os.umask(earlier)
        for name in ("strict", "inner/loose"):
            (folder / name).write_text("")
        (folder / "strict").chmod(0o600)
        (folder / "inner/loose").chmod(0o666)
        usual_modes(folder)
        assert {(folder / n).stat().st_mode & 0o777 for n in ("strict", "inner/loose")} == {mode}


def test_a_place_where_no_folder_can_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nothing")
    places = {
        tmp_path / "file" / "new": "file is not a folder",
        tmp_path / "file" / "deep" / "new": "file is not a folder",
        tmp_path / "dangling" / "new": "dangling is not a folder",
        Path("/proc/new"): "no folder can be made in /proc",
    }
    for place, reason in places.items():
        for check in (check_new, Lineage.check_vacant):
            with pytest.raises(PerdureError, match=f"{place}: cannot be made, because .*{reason}"):
                check(place)
        # Nothing else that is given is there, and this is said first.
        for begin in (
            lambda out: perdure.init(out, base="no-base"),
            lambda out: perdure.merge(["no-model"], base="no-base", into=out),
            lambda out: perdure.statistics("no-model", [{"text": "x"}], out),
            lambda out: perdure.export("no-lineage", out),
            lambda out: perdure.pack("no-model", out, base="no-base"),
            lambda out: perdure.unpack("no-pack", out),
        ):
            with pytest.raises(PerdureError, match="cannot be made"):
                begin(place)
    check_new(tmp_path / "deep" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_an_empty_folder_that_cannot_be_replaced_is_refused_before_any_work(tmp_path, monkeypatch):
    for name in ("empty", "mounted", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nothing")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "mounted")
    for place, words in {
        tmp_path / "link": "is a symbolic link",
        tmp_path / "dangling": "is a symbolic link",
        tmp_path / "mounted": "is where a disk is mounted, and cannot be replaced",
        tmp_path / "here": "is the working folder, and cannot be replaced",
        Path(): "is the working folder, and cannot be replaced",
    }.items():
        with pytest.raises(PerdureError, match=f"{place}: {words}.*give a new folder"):
            check_new(place)
    check_new(tmp_path / "empty")
