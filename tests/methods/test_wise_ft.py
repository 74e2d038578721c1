"""WiSE-FT: the average, by its formula."""

import pytest
import torch

from perdure.train.parameters import snapshot
from tiny import KINDS
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "new"), [(0.25, 0.25), (None, 0.5), (0.0, 0.0)])
def test_the_weights_are_the_average_with_the_stage_before(kind, share, new, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, {"wise_ft": {"share": share}}, tmp_path)  # the second stage
    before = snapshot(base.model)
    trainer.learn()
    learned = snapshot(base.model)
    trainer.methods[0].end_task(base.model)
    for name, tensor in snapshot(base.model).items():
        torch.testing.assert_close(tensor, (1 - new) * before[name] + new * learned[name])


def test_a_mean_of_all_stages_by_one_over_t():
    stages, mean = torch.randn(5, 3), torch.zeros(3)
    for t, stage in enumerate(stages, start=1):
        mean = torch.lerp(mean, stage, 1 / t)
    torch.testing.assert_close(mean, stages.mean(0))


def test_new_rows_of_a_head_stay_as_learned(tmp_path):
    base = tiny_base("encoder")
    trainer = engine(base, {"wise_ft": {"share": 0.0}}, tmp_path)
    trainer.methods[0].labels = torch.tensor(4)
    before = snapshot(base.model)
    trainer.learn()
    learned = snapshot(base.model)
    trainer.methods[0].end_task(base.model)
    assert torch.equal(base.model.weight[:4], before["weight"][:4])
    assert torch.equal(base.model.weight[4:], learned["weight"][4:])
