"""Two processes that share a batch learn what one process learns (DDP over gloo, on the CPU)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods.recurrent_kif.plain_trainer import farthest
from tiny import KINDS
from train.engine import same
from train.two_processes import METHODS, in_another_trainer, learned


pytestmark = pytest.mark.own


SCRIPT = Path(__file__).with_name("two_processes.py")
# Every method on one kind of model, and the other kinds once; the rest is slow.
SOME = [*(f"causal-{method}" for method in METHODS), "seq2seq-recurrent_kif", "encoder-replay"]
REST = [f"{kind}-{method}" for kind in KINDS for method in METHODS]
REST = [name for name in REST if name not in SOME]


def in_two_processes(folder: Path, names: list[str]) -> dict[str, tuple[dict, dict]]:
    """The weights that both ranks end in, by the name of what was trained."""
    tests = SCRIPT.parents[1]
    path = os.pathsep.join(str(place) for place in (tests.parent / "src", tests))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    completed = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(folder), *names],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    files = {name: [folder / f"{name}-{rank}.safetensors" for rank in (0, 1)] for name in names}
    return {name: (load_file(first), load_file(second)) for name, (first, second) in files.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One launch for all that is not slow: the processes' imports take most of it."""
    return in_two_processes(tmp_path_factory.mktemp("two"), [*SOME, "callback"])


def check(name: str, ranks: tuple[dict, dict], work: Path) -> None:
    alone, (first, second) = learned(name, work), ranks
    assert same(first, second)
    assert alone.keys() == first.keys()
    for parameter, tensor in alone.items():
        torch.testing.assert_close(first[parameter], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SOME)
def test_two_processes_learn_as_one(name, both, tmp_path):
    check(name, both[name], tmp_path)


@pytest.mark.slow
def test_so_they_do_on_every_kind(tmp_path):
    for name, ranks in in_two_processes(tmp_path, REST).items():
        check(name, ranks, tmp_path / "work")


def test_so_they_do_in_another_trainer(both, tmp_path):
    """Each of the two takes half of the batch: the hook's gradients are of one half only."""
    alone, (first, second) = in_another_trainer(tmp_path), both["callback"]
    assert same(first, second)
    assert farthest(alone, first)[1] <= 3  # a score at the threshold may change its side
