"""bf16: the forward pass in it, the trained weights never."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from perdure.models.layout import ADAPTER_WEIGHTS
from place import learned, setting_for
from tiny import KINDS, tiny_model


def in_trainer() -> bool:
    """Whether a Trainer's step is under way: `init` tries an adapter in fp32."""
    frame = sys._getframe()  # `inspect.stack` opens the source of every frame, at each layer
    while frame and frame.f_code.co_name != "training_step":
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_bf16_base_is_learned_on_in_autocast_and_the_adapter_is_fp32(kind, tmp_path):
    setting = setting_for(kind, tmp_path)
    tiny_model(kind).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    training = {**setting["training"], "bf16": True}
    dtypes: list[torch.dtype] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: (
            dtypes.append(out.dtype)
            if isinstance(module, torch.nn.Linear) and module.training and in_trainer()
            else None
        )
    )
    lineage = learned(
        {**setting, "training": training, "method": "recurrent_kif"}, tmp_path / "run"
    )
    handle.remove()
    assert set(dtypes) <= {torch.bfloat16}
    assert len(dtypes) > 0
    first, last = (load_file(lineage.folder(e) / ADAPTER_WEIGHTS) for e in lineage.stages)
    assert {t.dtype for t in last.values()} == {torch.float32}
    assert any(not torch.equal(first[name], last[name]) for name in first)
