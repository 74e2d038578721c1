"""The arguments of a task's Trainer."""

import pytest
import torch

from perdure.train.arguments import arguments_for_stage, training_arguments
from perdure.train.sharing import Shares
from perdure.train.step import rows_of_a_step


pytestmark = pytest.mark.own


def test_one_process_uses_one_gpu_of_several(tmp_path, monkeypatch):
    """With more, the Trainer takes `nn.DataParallel`, whose batches are as many times larger."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # else there are none
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    args = training_arguments(training, tmp_path, 0, 0)
    of_stage = arguments_for_stage(args, tmp_path, seed=1)
    resumed = Shares(2).divided(of_stage, "task")
    for each, rows in ((args, 8), (of_stage, 8), (resumed, 16)):
        assert each.n_gpu == 1
        assert each.train_batch_size == 4
        assert rows_of_a_step(each) == rows
