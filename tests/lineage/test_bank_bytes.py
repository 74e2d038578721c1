"""The bytes that a stage stores, if each task has an adapter of its own, are bounded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import write_rows
from perdure.api import run
from perdure.config import load_config
from perdure.lineage.lineage import Lineage
from perdure.models.layout import ADAPTER_WEIGHTS, METHOD_STATE
from tiny import WORDS, save_tiny


pytestmark = pytest.mark.own
TASKS = 6
WIDTH = 32  # of the tiny base, and so the inputs of each layer with an adapter


def rows_of(number: int) -> list[dict[str, str]]:
    """Rows with other words in each task, so that its inputs have other directions."""
    words = [WORDS[(4 * number + i) % len(WORDS)] for i in range(8)]
    return [
        {
            "prompt": f"question the {words[i % 4]} {words[i // 4 % 4]} = answer : ",
            "completion": words[4 + i % 4],
        }
        for i in range(16)
    ]


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.fixture(params=["olora", "inflora"])
def lineage(request, tmp_path) -> Lineage:
    """A lineage of six tasks."""
    tasks = [
        {"name": f"task{i}", "train": str(write_rows(tmp_path / f"{i}.jsonl", rows_of(i)))}
        for i in range(TASKS)
    ]
    setting = {
        "base": str(save_tiny("causal", tmp_path / "base")),
        "method": request.param,
        "adapter": {"r": 8},
        "tasks": tasks,
        "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
        "max_completion_length": 4,
        "max_length": 64,
        "threads": 1,
        "lineage": str(tmp_path / "lineage"),
    }
    return run(load_config(setting))


def test_a_stage_adds_the_adapter_of_one_task_and_a_state_that_is_bounded(lineage):
    folders = [lineage.folder(entry) for entry in lineage.stages]
    method = lineage.config.method
    assert len(folders) == TASKS
    assert [f for f in folders if (f / ADAPTER_WEIGHTS).exists()] == folders[-1:]
    files = [lineage.file(entry, ADAPTER_WEIGHTS) for entry in lineage.stages]
    adapters = [size(load_file(file)) for file in files if file]
    assert adapters == [adapters[0] * (i + 1) for i in range(TASKS)]
    states = [load_file(folder / METHOD_STATE) for folder in folders]
    if method == "olora":
        assert {size(state) for state in states} == {8}  # the rank of one task
        return
    bases = [{k: t for k, t in state.items() if t.dim() == 2} for state in states]
    layers = len(bases[0])
    assert layers == len(adapter_layers(folders[-1]))
    for state, basis in zip(states, bases, strict=True):
        assert {len(tensor) for tensor in basis.values()} == {WIDTH}
        assert max(tensor.shape[1] for tensor in basis.values()) <= WIDTH // 2
        assert size(state) <= 8 + layers * 4 * WIDTH * (WIDTH // 2)
    # The bound was met, and a layer has gone over to its complement.
    assert any(key.startswith("inflora.free.") for key in bases[-1])
    assert not any(key.startswith("inflora.free.") for key in bases[0])


def adapter_layers(folder: Path) -> list[str]:
    return [name for name in load_file(folder / ADAPTER_WEIGHTS) if "lora_A" in name]
