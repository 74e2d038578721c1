"""How long rows may be on a base, and which adapters it can carry."""

import pytest

from command import perdure
from perdure import Lineage, PerdureError
from perdure.config import load_config
from perdure.data.task import Split, Task
from perdure.models.base import load_base
from place import init, learn, learned, setting_for
from tiny import KINDS, save_tiny
from zoo import make, tokenizer


pytestmark = pytest.mark.own


def test_the_length_is_that_of_the_base_if_it_is_less_than_512(tmp_path):
    setting = setting_for("encoder", tmp_path)  # 128 positions
    lineage = learned(setting, tmp_path / "run")
    assert lineage.config.max_length == 128
    assert learned(setting, tmp_path / "run").head == 2  # the same settings once more
    t5 = save_tiny("seq2seq", tmp_path / "t5")  # its positions are relative, without an end
    assert perdure("init", tmp_path / "m", "--base", t5).status == 0
    assert Lineage(tmp_path / "m").config.max_length == 512


def test_more_than_the_base_has_is_refused(tmp_path):
    with pytest.raises(
        PerdureError, match=r"129 is more than the 128 positions.*set max_length=128"
    ):
        learned({**setting_for("encoder", tmp_path), "max_length": 129}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_lengthens_the_text_is_refused_where_labels_lie_under_it(kind, tmp_path):
    base = str(save_tiny(kind, tmp_path))
    adapter = {"peft_type": "prompt_tuning", "num_virtual_tokens": 4}
    if kind == "seq2seq":
        load_base(base, adapter, 0)
        return
    with pytest.raises(PerdureError, match=r"PROMPT_TUNING adds tokens to the text.*use LORA"):
        load_base(base, adapter, 0)


def test_the_type_of_an_adapter_is_read_in_either_case(tmp_path):
    base = str(save_tiny("causal", tmp_path))
    one, two = (load_base(base, {"peft_type": name}, 0).peft for name in ("lora", "LORA"))
    assert one.peft_config["default"].to_dict() == two.peft_config["default"].to_dict()


LONG = {"prompt": "one two three four " * 15 + "is", "completion": "red"}


@pytest.mark.parametrize("name", ["gpt2", "opt", "bart"])
def test_a_prompt_and_its_answer_end_at_the_last_position(name, tmp_path):
    base = make(name, tmp_path / "base")
    setting = {"base": str(base), "threads": 1, "training": {"max_steps": 1}}
    setting |= {"max_completion_length": 8, "scoring": {"forward": False}}
    init(tmp_path / "run", load_config(setting))
    train, test = Split((LONG,)), Split((LONG, {**LONG, "prompt": "one"}))
    entry = learn(tmp_path / "run", Task("t", train, test=test))
    assert entry["stage"] == 1
    assert Lineage(tmp_path / "run").config.max_length == 64


def test_answers_are_no_longer_than_the_base_unless_somebody_says_so(tmp_path):
    setting = {"base": str(make("led", tmp_path / "base"))}
    init(tmp_path / "run", load_config(setting))
    assert Lineage(tmp_path / "run").config.max_completion_length == 32


def test_an_answer_longer_than_the_decoder_is_refused(tmp_path):
    setting = {"base": str(make("led", tmp_path / "base")), "max_completion_length": 40}
    with pytest.raises(PerdureError, match=r"40 is more than the 32 positions of the decoder"):
        init(tmp_path / "run", load_config(setting))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_token_without_an_embedding_is_refused_where_a_row_has_it(split, tmp_path):
    base = make("llama", tmp_path / "base")
    words = tokenizer("causal")
    words.add_tokens(["<new>", "<unused>"])
    words.save_pretrained(base)
    init(tmp_path / "run", load_config({"base": str(base), "threads": 1}))
    known, unknown = ({"prompt": f"{word} is", "completion": "red"} for word in ("cat", "<new>"))
    train, test = ([known, unknown], [known]) if split == "train" else ([known], [known, unknown])
    with pytest.raises(
        PerdureError, match=rf"t {split}, row 2: .*'<new>' has the id 22, but the base has 22 emb"
    ):
        learn(tmp_path / "run", Task("t", Split(tuple(train)), test=Split(tuple(test))))
    assert Lineage(tmp_path / "run").head == 0


def test_a_padding_token_without_an_embedding_is_refused_at_init(tmp_path):
    base = make("llama", tmp_path / "base")
    words = tokenizer("causal")
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(base)
    with pytest.raises(PerdureError, match=r"'\[PAD\]' has the id 22, .*resize_token_embeddings"):
        init(tmp_path / "run", load_config({"base": str(base)}))


def test_the_targets_that_were_found_are_written_into_the_settings(tmp_path):
    setting = {"base": str(make("granite", tmp_path / "base")), "threads": 1}
    init(tmp_path / "run", load_config(setting))
    assert Lineage(tmp_path / "run").config.adapter == {"target_modules": "all-linear"}


def test_it_is_said_that_padding_changes_what_is_learned(tmp_path):
    setting = {"base": str(make("fnet", tmp_path / "base")), "threads": 1}
    setting["training"] = {"max_steps": 1}
    init(tmp_path / "run", load_config(setting))
    lines = []
    learn(tmp_path / "run", Task("t", Split((LONG,))), say=lines.append)
    assert any("per_device_train_batch_size=1" in line for line in lines)
