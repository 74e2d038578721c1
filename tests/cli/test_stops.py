"""A verb that is asked to stop: one line, the status of a shell, and nothing is lost or left."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from command import perdure, tree, workplace
from comparison.grids import grid_yaml
from perdure.comparison import processes
from perdure.lineage.lineage import Lineage
from perdure.train.trainer import ContinualTrainer


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A place with the settings of a run, and what it made when it was not stopped, `whole`."""
    place = workplace(tmp_path_factory.mktemp("whole"))
    assert perdure("run", place / "run.yaml").status == 0
    (place / "lineage").rename(place / "whole")
    return place


@pytest.fixture
def lineage(place):
    yield place / "lineage"
    shutil.rmtree(place / "lineage")


def stages(lineage: Path) -> dict[str, str]:
    """What a run decides: all but the times."""
    files = tree(lineage)
    return {name: files[name] for name in files if name != "timings.json"}


@pytest.mark.parametrize(
    ("number", "status", "step"),
    [(signal.SIGTERM, 143, 1), pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow)],
)
def test_a_run_leaves_a_checkpoint_and_goes_on_to_the_same_bytes(
    place, lineage, monkeypatch, number, status, step
):
    training_step, calls = ContinualTrainer.training_step, []

    def signalled(self, *arguments):
        calls.append(self.state.global_step)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return training_step(self, *arguments)

    monkeypatch.setattr(ContinualTrainer, "training_step", signalled)
    result = perdure("run", place / "run.yaml")
    assert (result.status, result.out) == (status, "")
    assert result.err.splitlines()[-1] == (
        f"perdure: stopped after step {step} of 2, which is kept; "
        "repeat the same command to continue"
    )
    assert "Traceback" not in result.err
    assert len(calls) == step
    result = perdure("run", place / "run.yaml")
    assert result.status == 0
    assert f"colour: going on from step {step}" in result.err
    assert len(calls) == 4
    assert stages(lineage) == stages(place / "whole")


def test_a_step_that_takes_too_long_is_not_waited_for(place, lineage, monkeypatch):
    def endless(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        pytest.fail("it waited")

    monkeypatch.setattr("perdure.train.trainer.LONGEST_STEP", 0.01)
    monkeypatch.setattr(ContinualTrainer, "training_step", endless)
    result = perdure("run", place / "run.yaml")
    assert result.status == 143
    assert result.err.splitlines()[-1] == "perdure: stopped; repeat the same command to continue"
    assert Lineage(lineage).stages == []


def test_a_dry_run_that_is_stopped_says_that_nothing_is_kept(place, monkeypatch):
    training_step, before = ContinualTrainer.training_step, tree(place)

    def signalled(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *arguments)

    monkeypatch.setattr(ContinualTrainer, "training_step", signalled)
    result = perdure("run", place / "run.yaml", "--dry-run")
    assert (result.status, result.out) == (143, "")
    assert result.err.splitlines()[-1] == "perdure: stopped; nothing was written"
    assert tree(place) == before


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize(
    ("number", "status", "program"),
    [
        (signal.SIGTERM, 143, "import time; time.sleep(60)"),
        pytest.param(signal.SIGINT, 130, STUBBORN, marks=pytest.mark.slow),
    ],
)
def test_compare_leaves_no_cell_running(tmp_path, monkeypatch, number, status, program):
    started = []
    begin = processes.start

    def start(cell, folder):
        started.append(begin(cell, folder))
        if len(started) == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return started[-1]

    monkeypatch.setattr(processes, "ENDING", 1.0)
    monkeypatch.setattr(processes, "command", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr(processes, "start", start)
    result = perdure("compare", grid_yaml(tmp_path), "--jobs", 2)
    assert (result.status, result.out) == (status, "")
    assert result.err.splitlines()[-1] == "perdure: stopped; repeat the same command to continue"
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


COMPARE = """
import sys
from pathlib import Path
from perdure.comparison import processes
class Cell:
    class config: threads = 1
    def file(self, folder, ending): return Path("run" + ending)
cell = processes.start(Cell(), Path())
print(cell.pid, flush=True)
cell.wait()
"""


@pytest.mark.slow
def test_a_cell_stops_with_a_compare_that_was_killed(place, lineage, monkeypatch):
    """SIGKILL leaves no time to end the cells; they end themselves, each with a checkpoint."""
    monkeypatch.chdir(place)
    settings = (place / "run.yaml").read_text().replace("num_train_epochs: 1", "max_steps: 10000")
    (place / "run.yaml").rename(place / "kept.yaml")
    (place / "run.yaml").write_text(settings)
    parent = subprocess.Popen([sys.executable, "-c", COMPARE], stdout=subprocess.PIPE, text=True)
    with parent:
        cell = psutil.Process(int(parent.stdout.readline()))
        log = place / "run.log"
        while not list((place / "lineage").glob(".work/*")):
            assert cell.is_running(), log.read_text()
            time.sleep(0.1)
        parent.kill()
    assert psutil.wait_procs([cell], timeout=60)[1] == [], log.read_text()
    assert "perdure: stopped" in log.read_text()
    (place / "kept.yaml").rename(place / "run.yaml")
