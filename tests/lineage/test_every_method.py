"""Every method in a lineage of three tasks: stopped and resumed, loaded, exported."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from perdure import api, methods
from perdure.api import export, verify
from perdure.config import load_config
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from place import output, setting_for, stage_output
from tiny import tiny_rows
from train.engine import Stop, Stopped, whole


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def setting(folder):
    """Three tasks of 16 rows, two steps each."""
    settings = setting_for("causal", folder, n=16)
    files = {split: folder / f"count-{split}.jsonl" for split in ("train", "test")}
    for (split, file), n in zip(files.items(), (16, 4), strict=True):
        lines = [json.dumps(row) + "\n" for row in tiny_rows("count", n, int(split == "test"))]
        file.write_text("".join(lines))
    settings["tasks"].append({"name": "count", **{split: str(f) for split, f in files.items()}})
    return {
        **settings,
        "memory": {"ratio": 0.25},
        "scoring": {"mode": "options", "forward": False, "old": "last"},
        "max_length": 32,
        "checkpoint_every": 1,
    }


def run(setting, name, path, callbacks=()):
    more = {"adapter": None, "training": {"learning_rate": 1e-3, "num_train_epochs": 1}}
    settings = {**setting, **(more if whole(name) else {}), "method": name, "lineage": str(path)}
    return api.run(load_config(settings), callbacks=callbacks)


def contents(path):
    """Everything that is in a hash: all but the timings and the lock."""
    return {n: h for n, h in hash_folder(path).items() if n not in ("timings.json", "lock")}


# One of each way to keep state; tests/methods/test_methods.py resumes a trainer with any other.
ALWAYS = ("sequential", "replay", "recurrent_kif", "ewc", "olora")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow)
        for name in methods.names()
    ],
)
def test_a_lineage_resumes_bitwise_verifies_and_exports_what_it_is(name, setting, tmp_path):
    run(setting, name, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(setting, name, tmp_path / "again", [Stop(1, task=3)])
    run(setting, name, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    lineage = Lineage(tmp_path / "whole")
    assert len(lineage.stages) == 3
    assert verify(tmp_path / "whole") == []
    live = stage_output(tmp_path / "whole")
    assert torch.isfinite(live).all()
    export(tmp_path / "whole", tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(output(plain, tokenizer), live, atol=1e-5, rtol=1e-4)
