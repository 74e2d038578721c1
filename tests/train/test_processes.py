"""Two processes that share a batch learn what one process learns (DDP over gloo, on the CPU)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.own


SCRIPT = Path(__file__).with_name("two_processes.py")


def test_two_processes_learn_as_one(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    folders = (
        SCRIPT.parents[2] / "src",
        *SCRIPT.parents[:2],
    )
    places = os.pathsep.join(str(folder) for folder in folders)
    environment = {**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1"}
    found = []
    for name, before in (("one", []), ("two", launch)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, *before, str(SCRIPT), str(folder)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[:3000]
        found.append({file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))})
    one, two = found
    assert len(one) == 12
    for run, weights in one.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(two[run][name], tensor, atol=1e-6, rtol=0)
