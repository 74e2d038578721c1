"""Two processes that share a batch learn what one process learns (DDP over gloo, on the CPU)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods.recurrent_kif.plain_trainer import farthest
from perdure.api import verify
from perdure.lineage.lineage import Lineage
from perdure.methods.shared.importance import quantile_threshold
from perdure.models.layout import METHOD_STATE
from place import setting_for
from tiny import KINDS
from train.engine import same
from train.two_processes import (
    METHODS,
    SCORES,
    THRESHOLD,
    in_another_trainer,
    learned,
    lineage_learned,
)


pytestmark = pytest.mark.own


SCRIPT = Path(__file__).with_name("two_processes.py")
# Every method on one kind of model, and the other kinds once; the rest is slow.
SOME = [*(f"causal-{method}" for method in METHODS), "seq2seq-recurrent_kif", "encoder-replay"]
REST = [f"{kind}-{method}" for kind in KINDS for method in METHODS]
REST = [name for name in REST if name not in SOME]


# Lineages that `perdure.run` learns, and one that is stopped in its second task.
LINEAGES = ["lora-replay", "lora-recurrent_kif", "lora-ewc", "lora-lwf", "whole-recurrent_kif"]
STOPPED = "lora-ewc"
SHARDED = ["lora-recurrent_kif", "lora-kl_base", "whole-recurrent_kif", "whole-ewc"]
OTHER_SHARDED = ["whole-replay", "whole-sequential", "whole-l2", "lora-mas", "lora-ewc"]
OTHER_LINEAGES = [f"whole-{method}" for method in ("replay", "ewc", "lwf")]


def in_two_processes(folder: Path, names: list[str]) -> dict[str, tuple[dict, dict]]:
    """The weights that both ranks end in, by the name of what was trained."""
    (folder / "setting.json").write_text(json.dumps(setting_for("causal", folder, n=24)))
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
    trained = [name for name in names if name.partition("-")[0] in (*KINDS, "callback")]
    files = {name: [folder / f"{name}-{rank}.safetensors" for rank in (0, 1)] for name in trained}
    return {name: (load_file(first), load_file(second)) for name, (first, second) in files.items()}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One launch for all that is not slow: the processes' imports take most of it."""
    folder = tmp_path_factory.mktemp("two")
    lineages = [f"lineage-{name}" for name in LINEAGES]
    sharded = [f"sharded-{name}" for name in [THRESHOLD, *SHARDED]]
    names = [*SOME, "callback", *lineages, f"stopped-{STOPPED}", *sharded]
    return folder, in_two_processes(folder, names)


def check(name: str, ranks: tuple[dict, dict], work: Path) -> None:
    alone, (first, second) = learned(name, work), ranks
    assert same(first, second)
    assert alone.keys() == first.keys()
    for parameter, tensor in alone.items():
        torch.testing.assert_close(first[parameter], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SOME)
def test_two_processes_learn_as_one(name, both, tmp_path):
    check(name, both[1][name], tmp_path)


@pytest.mark.slow
def test_so_they_do_on_every_kind(tmp_path):
    for name, ranks in in_two_processes(tmp_path, REST).items():
        check(name, ranks, tmp_path / "work")


def test_so_they_do_in_another_trainer(both, tmp_path):
    """Each of the two takes half of the batch: the hook's gradients are of one half only."""
    alone, (first, second) = in_another_trainer(tmp_path), both[1]["callback"]
    assert same(first, second)
    assert farthest(alone, first)[1] <= 3  # a score at the threshold may change its side


def check_lineage(name: str, folder: Path, two: Path) -> None:
    """Compare every stage of a lineage with that of one process, which has the whole batch."""
    alone, together = lineage_learned(name, folder / f"alone-{name}"), Lineage(two)
    assert verify(two) == []
    assert [entry.get("processes") for entry in together.stages] == [2, 2]
    assert [entry["scores"] for entry in together.stages] == [e["scores"] for e in alone.stages]
    for number, counts in alone.timings().items():
        counted = together.timings()[number]
        keys = ("steps", "rows", "rehearsed")
        assert [counted.get(key) for key in keys] == [counts.get(key) for key in keys]
    for entry in alone.stages:
        for file in ("adapter_model.safetensors", "model.safetensors", METHOD_STATE):
            if file in entry["files"]:
                first, second = (
                    load_file(path / entry["folder"] / file) for path in (two, alone.path)
                )
                assert first.keys() == second.keys()
                for key, tensor in first.items():
                    # AdamW makes much of the rounding of gradients that are nearly zero.
                    torch.testing.assert_close(tensor, second[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", LINEAGES)
def test_two_processes_learn_a_lineage_as_one(name, both):
    folder = both[0]
    check_lineage(name, folder, folder / f"lineage-{name}")


@pytest.mark.slow
def test_so_they_do_with_whole_weights(tmp_path):
    in_two_processes(tmp_path, [f"lineage-{name}" for name in OTHER_LINEAGES])
    for name in OTHER_LINEAGES:
        check_lineage(name, tmp_path, tmp_path / f"lineage-{name}")


def test_an_error_of_the_main_process_is_that_of_all(both):
    lines = [(both[0] / f"stopped-{STOPPED}-{rank}.txt").read_text() for rank in (0, 1)]
    assert lines[0] == lines[1]
    assert "another process is writing to this lineage" in lines[0]


def test_one_process_goes_on_where_two_were_stopped(both):
    """It has half of the batch, and takes it twice in each step."""
    folder, lines = both[0], []
    place = folder / f"stopped-{STOPPED}"
    assert Lineage(place).head == 1
    resumed = lineage_learned(STOPPED, place, processes=2, say=lines.append)
    assert "animal: going on from step 1" in lines
    assert resumed.head == 2
    check_lineage(STOPPED, folder, place)


@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_with_a_part_of_the_weights_each_learn_as_one(name, both):
    check_lineage(name, both[0], both[0] / f"sharded-{name}")


@pytest.mark.slow
def test_so_they_do_with_other_methods(tmp_path):
    in_two_processes(tmp_path, [f"sharded-{name}" for name in OTHER_SHARDED])
    for name in OTHER_SHARDED:
        check_lineage(name, tmp_path, tmp_path / f"sharded-{name}")


def test_all_processes_find_the_threshold_of_all_scores(both):
    """Each has a part of the scores; that of its own part would be another one."""
    files = [both[0] / f"sharded-{THRESHOLD}-{rank}.txt" for rank in (0, 1)]
    assert [float(file.read_text()) for file in files] == [quantile_threshold(SCORES, 0.8)] * 2
