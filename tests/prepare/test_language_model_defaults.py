"""What `init` chooses for a language model where its user has chosen nothing."""

import pytest
import yaml

from command import perdure
from perdure.api import init, learn, verify
from perdure.config import Config
from place import setting_for


pytestmark = pytest.mark.own
LASTING = [{"recurrent_kif": {"preset": "lasting"}}, "kl_base"]


def test_everything_is_chosen_and_written(tmp_path):
    setting = setting_for("causal", tmp_path, n=12)
    output = perdure("init", tmp_path / "lineage", "--base", setting["base"])
    assert output.status == 0, output.err
    written = yaml.safe_load((tmp_path / "lineage/lineage.yaml").read_text())
    assert written["method"] == LASTING
    assert written["adapter"] == {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }
    assert written["training"] == {
        "learning_rate": 2e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "group_by_length",
    }
    assert written["memory"]["ratio"] == 0.05
    assert written["guard"]["share"] == 0.2
    for words in (
        "recurrent_kif (preset lasting) + kl_base",
        "target_modules all-linear",
        "learning_rate 0.0002",
    ):
        assert words in output.out
    task = setting["tasks"][0]
    assert learn(tmp_path / "lineage", "colour", task["train"])["method"] == LASTING
    assert verify(tmp_path / "lineage") == []


@pytest.mark.parametrize(
    ("kind", "chosen", "method", "rate"),
    [
        ("causal", {"method": "sequential"}, "sequential", 2e-4),
        ("causal", {"training.learning_rate": 1e-3}, LASTING, 1e-3),
        ("causal", {"adapter": None}, "replay", 2e-5),
        ("causal", {"mode": "per_task"}, "sequential", 2e-4),
        ("seq2seq", {}, LASTING, 2e-4),
        ("encoder", {}, "replay", 2e-4),
    ],
)
def test_what_was_chosen_stays_and_the_rest_fits_the_base(tmp_path, kind, chosen, method, rate):
    base = setting_for(kind, tmp_path)["base"]
    config = init(tmp_path / "lineage", base=base, **chosen).config
    assert config.method == method
    assert config.training["learning_rate"] == rate
    assert ("train_sampling_strategy" in config.training) == (kind != "encoder")


def test_a_part_of_the_adapter_is_completed(tmp_path):
    base = setting_for("causal", tmp_path)["base"]
    adapter = init(tmp_path / "lineage", base=base, **{"adapter.r": 4}).config.adapter
    assert adapter is not None
    assert (adapter["r"], adapter["lora_alpha"], adapter["target_modules"]) == (4, 32, "all-linear")


def test_a_config_is_used_as_it_is(tmp_path):
    base = setting_for("causal", tmp_path)["base"]
    config = init(tmp_path / "lineage", config=Config(base=base)).config
    assert (config.method, config.training) == ("sequential", {})
