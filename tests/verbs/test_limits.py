"""How long rows may be on a base, and which adapters it can carry."""

import pytest
from transformers import AutoConfig

from command import engram
from engram import EngramError, Lineage
from engram.models.base import load_base, positions
from place import learned, setting_for
from tiny import KINDS, save_tiny


def test_the_length_is_that_of_the_base_if_it_is_less_than_512(tmp_path):
    setting = setting_for("encoder", tmp_path)  # 128 positions
    lineage = learned(setting, tmp_path / "run")
    assert lineage.config.max_length == 128
    assert learned(setting, tmp_path / "run").head == 2  # the same settings once more
    t5 = save_tiny("seq2seq", tmp_path / "t5")  # its positions are relative, without an end
    assert engram("init", tmp_path / "m", "--base", t5).status == 0
    assert Lineage(tmp_path / "m").config.max_length == 512


def test_more_than_the_base_has_is_refused(tmp_path):
    with pytest.raises(
        EngramError, match=r"129 is more than the 128 positions.*set max_length=128"
    ):
        learned({**setting_for("encoder", tmp_path), "max_length": 129}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_family_that_counts_from_the_padding_on_has_two_less():
    assert positions(AutoConfig.for_model("roberta", max_position_embeddings=514)) == 512
    assert positions(AutoConfig.for_model("bert")) == 512
    assert positions(AutoConfig.for_model("t5")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_lengthens_the_text_is_refused_where_labels_lie_under_it(kind, tmp_path):
    base = str(save_tiny(kind, tmp_path))
    given = {"peft_type": "prompt_tuning", "num_virtual_tokens": 4}
    if kind == "seq2seq":
        load_base(base, given, 0)
        return
    with pytest.raises(EngramError, match=r"PROMPT_TUNING lengthens the text.*take LORA"):
        load_base(base, given, 0)


def test_the_type_of_an_adapter_is_read_in_either_case(tmp_path):
    base = str(save_tiny("causal", tmp_path))
    one, two = (load_base(base, {"peft_type": name}, 0).peft for name in ("lora", "LORA"))
    assert one.peft_config["default"].to_dict() == two.peft_config["default"].to_dict()
