"""Rows that leave their batch when they are finished: the same answers, for less computation."""

import pytest
import torch

from perdure.measure import predict
from perdure.measure.decoding import end_ids
from perdure.measure.leaving import can_leave
from perdure.measure.predict import generate_ids, until_end
from perdure.models.base import Base, load_base
from zoo import ARCHITECTURES, make


PROMPTS = [[5 + i % 7] * (1 + (5 * i) % 11) for i in range(9)]
STOPS = {3, 8, 13}  # tokens that end answers after different numbers of tokens
CAUSAL = [name for name, (kind, *_) in ARCHITECTURES.items() if kind == "causal"]
FEW = [name for name in ("llama", "gpt2", "mistral", "gemma2", "mamba") if name in CAUSAL]


def answers(base: Base, batch_size: int = 9) -> tuple[list[list[int]], list[int]]:
    """The answers up to their end, and how many rows each pass of the model had."""
    sizes: list[int] = []
    handle = base.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        ids = generate_ids(base, PROMPTS, 20, batch_size, stops=STOPS)
    handle.remove()
    ends = {*STOPS, *end_ids(base)}
    return [until_end(row, ends)[0] for row in ids], sizes


def check_that_leaving_changes_nothing(name, folder, monkeypatch) -> bool:
    """Compare the answers with those of whole batches, and return whether a row left early."""
    base = load_base(str(make(name, folder, std=0.3)), None, 0)
    base.model.eval()
    bears = base.padding.left  # found by trying the model
    left, sizes = answers(base)
    leaves = can_leave(base)
    monkeypatch.setattr(predict, "can_leave", lambda base: False)
    whole, all_sizes = answers(base)
    assert left == whole
    if leaves and bears == "any" and len({len(row) for row in left}) > 1:
        assert sum(sizes) < sum(all_sizes)
        assert sizes[0] == len(PROMPTS)
        assert sizes[-1] < len(PROMPTS)
    else:
        assert sizes == all_sizes
    return leaves and len({len(row) for row in left}) > 1


@pytest.mark.parametrize("name", FEW)
def test_rows_that_leave_change_no_answer(name, tmp_path, monkeypatch):
    assert check_that_leaving_changes_nothing(name, tmp_path, monkeypatch) == (name != "mamba")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in (*FEW, "xlstm")])
def test_rows_that_leave_change_no_answer_of_any_architecture(name, tmp_path, monkeypatch):
    check_that_leaving_changes_nothing(name, tmp_path, monkeypatch)
