"""Cells on a Ray cluster of this machine."""

import sys

import pytest

from command import perdure, refused
from comparison.grids import grid_yaml


def test_without_ray_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = grid_yaml(tmp_path)
    refused(tmp_path, "compare", path, "--ray", "local", names=("pip install '.[ray]'",))


@pytest.mark.slow  # Ray takes most of a minute to start
@pytest.mark.filterwarnings("ignore")
def test_cells_run_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for the other tests
    import ray

    path = grid_yaml(tmp_path, grid={"method": ["agem"]})
    result = perdure("compare", path, "--ray", "local", "--json")
    try:
        assert result.status == 0, result.err
        assert [cell["error"] for cell in result.json["cells"]] == [None]
        (log,) = tmp_path.glob("out/cells/*.log")
        assert "colour" in log.read_text()
    finally:
        ray.shutdown()
