"""The verbs under a launcher: what is refused, and how several processes end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import perdure
from command import perdure as command
from command import workplace
from perdure import PerdureError, processes
from perdure.config import load_config
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.prepare import prepare
from perdure.prepare import settings as checks
from perdure.train.arguments import training_arguments
from perdure.verbs import advance


pytestmark = pytest.mark.own


SOURCE = str(Path(perdure.__file__).parents[1])
FSDP = {"ACCELERATE_USE_FSDP": "true"}
TENSORS = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}
CONTEXT = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}
MEETING = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, rows, and a YAML that learns two tasks."""
    return workplace(tmp_path_factory.mktemp("launch"))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed: it steps inside backward"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM: "),
        (TENSORS, "tensor parallelism: "),
        (
            {**TENSORS, "PARALLELISM_CONFIG_TP_SIZE": "1", "PARALLELISM_CONFIG_CP_SIZE": "2"},
            "context",
        ),
        (FSDP, "FSDP1: "),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision bf16: "),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed precision fp16: "),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo: "),
    ],
)
def test_what_accelerate_may_not_choose(variables, words, place, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, out, err = command("run", place / "run.yaml", f"lineage={place}/refused")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"perdure: error: {words}")
    assert "DDP" in err or "training." in err  # what to use instead
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=agem"], "FSDP2: agem was not made for sharded weights; use DDP"),
        (["method=lwf"], "FSDP2: lwf of the previous stage needs its whole weights"),
        (["quantization.load_in_4bit=true"], "FSDP2: a quantised base"),
        (["training.metric_for_best_model=score"], "FSDP2: sharded weights cannot answer"),
    ],
)
def test_what_sharded_weights_cannot_do(settings, words, place, monkeypatch):
    for name, value in {**FSDP, "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    refused = [place / "run.yaml", f"lineage={place}/refused", "memory.ratio=0.1", *settings]
    assert "FSDP2: shards the weights over several processes" in command("run", *refused).err
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "are_apart", lambda: False)
    with pytest.raises(PerdureError, match="FSDP2: accelerate shards the weights only on an acc"):
        prepare(load_config(place / "run.yaml", settings[1:]))
    monkeypatch.setattr(checks, "can_shard", lambda: True)
    monkeypatch.setattr(checks, "training_arguments", lambda *_: None)
    with pytest.raises(PerdureError) as caught:
        prepare(load_config(place / "run.yaml", ["memory.ratio=0.1", *settings]))
    assert str(caught.value).startswith(words)
    assert "use" in str(caught.value)


def test_a_precision_that_the_settings_have_too_is_no_mistake(place, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert command("run", place / "run.yaml", "training.bf16=true", "--dry-run").status == 0


def test_a_launch_without_its_variables_is_refused(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = command("run", place / "run.yaml", f"lineage={place}/refused")
    assert (status, err.count("\n")) == (2, 1)
    assert "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT not set" in err


def test_in_python_only_learn_and_run_take_several_processes(place, monkeypatch):
    for name, value in MEETING.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PerdureError, match="several processes: a lineage has one writer"):
        perdure.init(place / "refused", base=str(place / "base"))


# --- two processes


def launched(folder: Path, *arguments: object) -> list[subprocess.Popen]:
    """Start `perdure ARGUMENTS` in two processes, without a launcher; return them."""
    port = str(20000 + os.getpid() % 20000)
    started = []
    for rank in ("0", "1"):
        variables = {**MEETING, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "perdure", *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", **variables},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def ended(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Wait for processes; return the status and the outputs of each."""
    outputs = [process.communicate(timeout=300) for process in started]
    return [(p.returncode, out, err) for p, (out, err) in zip(started, outputs, strict=True)]


def settings(place: Path, name: str) -> list[object]:
    return ["run", place / "run.yaml", f"lineage={place / name}", "adapter.lora_dropout=0"]


@pytest.mark.slow
def test_an_error_of_the_main_process_ends_the_other_one(place):
    """The lineage is locked, which only the main process can know."""
    assert command(*settings(place, "locked")).status == 0
    with locked(place / "locked"):
        (status, out, err), other = ended(launched(place, *settings(place, "locked")))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("perdure: error: ")
    assert "another process is writing to this lineage" in err
    assert other == (2, "", "")


@pytest.mark.slow
def test_one_prints_and_both_end(place):
    (status, out, _), other = ended(launched(place, *settings(place, "both")))
    assert status == 0
    assert out.count("stage 2, animal") == 1
    assert other[:2] == (0, "")
    assert [entry["processes"] for entry in Lineage(place / "both").stages] == [2, 2]
    (status, out, _), other = ended(launched(place, "log", place / "both"))
    assert (status, out.count("animal")) == (0, 2)
    assert other == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, 9), (1, 9), (0, 15), (1, 15)])
def test_a_process_that_is_killed_leaves_a_checkpoint(victim, number, place):
    name = f"killed-{victim}-{number}"
    rows = (place / "colour.jsonl").read_text() * 40
    (place / "many.jsonl").write_text(rows)
    arguments = [
        *("learn", place / name, "many", place / "many.jsonl"),
        *("training.per_device_train_batch_size=2",),
    ]
    created = command(
        *("init", place / name, "--base", place / "base", "method=replay", "checkpoint_every=5"),
        *("adapter.lora_dropout=0", "guard=null", "threads=1"),
    )
    assert created.status == 0
    started = launched(place, *arguments)
    while not list((place / name).glob(".work/*/checkpoint-10/sha256.json")):
        assert all(process.poll() is None for process in started)
        time.sleep(0.1)
    started[victim].send_signal(signal.Signals(number))
    results = ended(started)
    if number == 15:
        assert [status for status, _, _ in results] == [143, 143]
        assert "which is kept; repeat the same command to continue" in results[0][2]
    else:
        line = "process has ended; repeat the same command to continue"
        assert results[1 - victim][0] == 2
        assert line in results[1 - victim][2]
    assert Lineage(place / name).head == 0
    status, _, err = command(*arguments)
    assert status == 0
    assert "many: going on from step" in err
    assert Lineage(place / name).stages[0]["processes"] == 2


def test_a_stage_in_other_steps_than_the_one_before_is_told(tmp_path):
    """Two processes with batches of 4, and then one with the same settings."""
    args = training_arguments({"per_device_train_batch_size": 4}, tmp_path, 0, 0)
    plan: Any = SimpleNamespace(arguments=args, task="animal")
    for before, expected in (({"verb": "learn", "processes": 2}, 1), ({"verb": "learn"}, 0)):
        said: list[str] = []
        advance._warn_of_processes(before, plan, said.append)
        assert len(said) == expected
        assert all("rows in a step: 4, learned by one process" in line for line in said)
        assert all("the stage before: 8, by 2 processes" in line for line in said)
