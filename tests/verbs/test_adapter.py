"""`init --adapter`: a lineage that goes on from an adapter of plain PEFT."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    TrainerCallback,
)

from command import perdure, tree
from perdure import PerdureError
from perdure.api import evaluate, export, revert, show, verify
from perdure.config import load_config
from perdure.lineage import lineage as module
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.seeds import forked
from perdure.train import stage
from perdure.train.method import Method
from place import init, learn, output, setting_for, stage_output, task
from tiny import save_tiny
from train.engine import TARGETS, Stopped


AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}
TYPE = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}
FEW = {
    "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
    "max_completion_length": 4,
    "threads": 1,
    "max_length": 64,
}
causal = pytest.mark.parametrize("kind", ["causal"])


def plain_adapter(kind: str, folder: str = "mine", base: str = "base", **settings) -> None:
    """An adapter as someone made it with PEFT alone, whose weights are not zero."""
    lora = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[kind], "use_rslora": True}
    config = LoraConfig(task_type=TYPE[kind], **{**lora, **settings})
    save(get_peft_model(AUTO[kind].from_pretrained(base), config), folder)


def save(model: PeftModel, folder: str) -> None:
    with forked(1):
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


@pytest.fixture
def bare(kind, tmp_path, monkeypatch) -> Path:
    """A base, rows and an adapter; no lineage."""
    monkeypatch.chdir(tmp_path)
    setting_for(kind, tmp_path, n=24)
    plain_adapter(kind)
    return tmp_path


def peft_output(kind: str, folder: str = "mine") -> torch.Tensor:
    with forked(0):
        model = PeftModel.from_pretrained(AUTO[kind].from_pretrained("base"), folder)
    return output(model, AutoTokenizer.from_pretrained("base"))


class Starts(TrainerCallback):
    """Whether the adapter that training begins with is the given one."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        expected = load_file("mine/adapter_model.safetensors")
        parameters = {n.replace(".default", ""): p for n, p in model.named_parameters()}
        parameters = {n.removeprefix("backbone."): p for n, p in parameters.items()}
        self.same = all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_it_goes_on_from_the_adapter(bare, kind):
    """Stage 0 is the adapter, by bytes, logits and scores; the first task starts from it."""
    init("lineage", load_config(FEW), "mine")
    lineage = Lineage("lineage")
    assert lineage.config.base == "base"
    adapter = lineage.config.adapter
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (3, 5, True)
    assert set(adapter) == {"peft_type", "r", "lora_alpha", "lora_dropout"} | {
        "target_modules",
        "use_rslora",
    }
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = Path("lineage/stages/0000-adapter", name).read_bytes()
        assert content == Path("mine", name).read_bytes()
    assert torch.equal(stage_output("lineage", 0), peft_output(kind))
    assert verify("lineage") == []
    starts = Starts()
    learn("lineage", task("colour"), callbacks=[starts])
    assert starts.same
    learn("lineage", task("animal"))
    lineage = Lineage("lineage")
    assert not torch.equal(stage_output("lineage", 2), stage_output("lineage", 0))
    first = lineage.matrix().rows[0]
    if kind == "encoder":
        assert first == (None, None)
    else:
        assert first == tuple(cell["score"] for cell in evaluate("lineage", 0).values())
    assert verify("lineage") == []


@pytest.mark.parametrize("kind", ["causal"])
def test_row_0_of_the_matrix_is_with_the_adapter(bare, monkeypatch):
    """The first task, before it is learned, and the second, on what the lineage began on."""
    scored, original = [], stage.score

    def score(base, task, *rest):
        scored.append((task.name, output(base.network, base.tokenizer)))
        return original(base, task, *rest)

    monkeypatch.setattr(stage, "score", score)
    init("lineage", load_config(FEW), "mine")
    learn("lineage", task("colour"))
    learn("lineage", task("animal"))
    names = [name for name, _ in scored]
    assert names == ["colour", "colour", "animal", "animal", "colour", "animal"]
    began = stage_output("lineage", 0)
    assert torch.equal(scored[0][1], began)  # before colour, which is on stage 0 as well
    assert torch.equal(scored[3][1], began)  # animal on stage 0
    assert torch.equal(scored[2][1], stage_output("lineage", 1))


@causal
def test_a_revert_to_stage_0_is_back_on_the_adapter(bare):
    init("lineage", load_config(FEW), "mine")
    first = learn("lineage", task("colour"))
    revert("lineage", 0)
    assert torch.equal(stage_output("lineage"), peft_output("causal"))
    starts = Starts()
    again = learn("lineage", task("colour"), callbacks=[starts])
    assert starts.same
    assert (first["parent"], again["parent"], again["stage"]) == (0, 0, 2)
    stage_entry = show("lineage", 0)
    assert stage_entry["folder"] == "stages/0000-adapter"
    assert "lineage/stages/0000-adapter" in perdure("show", "lineage", "--stage", 0).out
    export("lineage", "out", 0)
    merged = AutoModelForCausalLM.from_pretrained("out")
    near = output(merged, AutoTokenizer.from_pretrained("out"))
    torch.testing.assert_close(near, peft_output("causal"))


@causal
def test_for_methods_it_is_a_task_that_was_learned_before(bare, monkeypatch):
    seen, begin = [], Method.begin_task

    def begin_task(self, model, context):
        seen.append((context.stage, context.is_newest, context.is_first))
        return begin(self, model, context)

    monkeypatch.setattr(Method, "begin_task", begin_task)
    for folder, adapter in (("on-base", None), ("on-mine", "mine")):
        settings = {**FEW, "base": "base", "method": "sequential"}
        init(folder, load_config(settings), adapter)
        for name in ("colour", "animal"):
            learn(folder, task(name))
    assert seen[:2] == [(1, True, True), (2, True, False)]
    assert seen[2:] == [(2, False, True), (3, True, False)]


@causal
def test_olora_freezes_it_from_the_first_task_on(bare):
    plain_adapter("causal", "plain", use_rslora=False)
    init("lineage", load_config({**FEW, "method": "olora"}), "plain")
    learn("lineage", task("colour"))
    lineage = Lineage("lineage")
    file = lineage.file(lineage.at(1), "adapter_model.safetensors")
    assert file is not None
    after = load_file(file)
    for name, before in load_file("plain/adapter_model.safetensors").items():
        old, new = after[name].split(3, int("lora_B" in name))
        assert torch.equal(old, before)
        assert new.any()
    assert verify("lineage") == []
    learn("lineage", task("animal"))
    assert verify("lineage") == []


@causal
@pytest.mark.parametrize("modules", [["lm_head"], ["norm"]])
def test_modules_that_were_trained_whole_come_along(bare, modules):
    plain_adapter("causal", "more", modules_to_save=modules)
    init("lineage", load_config(FEW), "more")
    assert torch.equal(stage_output("lineage", 0), peft_output("causal", "more"))
    assert not torch.equal(stage_output("lineage", 0), peft_output("causal"))
    learn("lineage", task("colour"))
    export("lineage", "out")
    model = AutoModelForCausalLM.from_pretrained("out")
    exported_output = output(model, AutoTokenizer.from_pretrained("out"))
    torch.testing.assert_close(exported_output, stage_output("lineage"))


@causal
def test_another_type_than_lora(bare):
    model = AutoModelForCausalLM.from_pretrained("base")
    targets = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    save(get_peft_model(model, IA3Config(task_type="CAUSAL_LM", **targets)), "other")
    init("lineage", load_config(FEW), "other")
    assert Lineage("lineage").config.adapter["peft_type"] == "IA3"
    assert torch.equal(stage_output("lineage", 0), peft_output("causal", "other"))
    learn("lineage", task("colour"))


@causal
def test_a_stage_of_another_lineage_is_such_an_adapter(bare):
    init("first", load_config({**FEW, "base": "base", "adapter": {"r": 2}}))
    learn("first", task("colour"))
    init("second", load_config(FEW), "first/stages/0001-colour")
    assert torch.equal(stage_output("second", 0), stage_output("first", 1))
    assert Lineage("second").config.adapter["r"] == 2


@causal
def test_a_base_that_is_given_goes_before_the_one_it_names(bare):
    shutil.copytree("base", "copy")
    init("lineage", load_config({**FEW, "base": "copy"}), "mine")
    assert Lineage("lineage").pin["name"] == "copy"


def refused(why: str, adapter: str = "mine", **settings) -> None:
    before = tree(Path())
    with pytest.raises(PerdureError, match=why) as error:
        init("lineage", load_config({**FEW, **settings}), adapter)
    assert "\n" not in str(error.value)
    assert tree(Path()) == before


@causal
def test_what_is_no_adapter(bare):
    refused(r"nothing: no adapter_config.json in it; give the folder that", "nothing")
    refused(r"base: no adapter_config.json in it", "base")
    Path("mine/adapter_model.safetensors").rename("mine/adapter_model.bin")
    refused(r"mine: no adapter_model.safetensors in it; a pickled adapter cannot be loaded")
    Path("mine/adapter_model.bin").unlink()
    refused(r"mine: no adapter_model.safetensors in it; give the folder")


@causal
@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"peft_type": "LORAA"}', '{"peft_type": 1}'])
def test_settings_that_are_none(bare, text):
    Path("mine/adapter_config.json").write_text(text)
    refused(r"mine/adapter_config.json: not an adapter's settings")


@causal
def test_a_tokenizer_beside_the_adapter(bare):
    """As TRL saves it: the base's own is taken, another one is refused with what differs."""
    tokenizer = AutoTokenizer.from_pretrained("base")
    tokenizer.save_pretrained("mine")
    init("same", load_config(FEW), "mine")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained("mine")
    refused("mine: the adapter was trained with another tokenizer .*chat template differs")
    tokenizer.save_pretrained("base")
    tokenizer.chat_template = None  # a base that has one, and an adapter trained without it
    Path("mine/chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained("mine")
    refused("mine: the adapter was trained with another tokenizer .*chat template differs")
    Path("base/chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained("base")
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained("mine")
    refused("its vocabulary differs.*give base=FOLDER")


@causal
def test_settings_besides_the_adapters_own(bare):
    for adapter, named in (({"r": 3, "lora_alpha": 4}, "r, lora_alpha"), (None, "adapter=null")):
        before = tree(Path())
        with pytest.raises(PerdureError, match=f"brings its own settings; leave out {named}"):
            init("lineage", load_config({**FEW, "adapter": adapter}), "mine")
        assert tree(Path()) == before


@causal
def test_an_adapter_of_another_base(bare):
    save_tiny("seq2seq", Path("t5"))
    plain_adapter("seq2seq", "of-t5", "t5")
    refused(
        "PEFT refuses these settings|do not load|belongs to another model", "of-t5", base="base"
    )
    model = AutoModelForCausalLM.from_pretrained("base")
    model.config.num_hidden_layers = 1
    del model.model.layers[1]
    model.save_pretrained("short")
    AutoTokenizer.from_pretrained("base").save_pretrained("short")
    plain_adapter("causal", "of-short", "short")
    refused("of-short: the adapter belongs to another model", "of-short", base="base")
    refused("mine: the adapter belongs to another model", base="short")
    tensors = load_file("mine/adapter_model.safetensors")
    narrow = {name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}
    save_file(narrow, "mine/adapter_model.safetensors", metadata={"format": "pt"})
    refused("mine: its weights do not load")


@causal
@pytest.mark.parametrize("line", ["append", "write_settings"])
def test_a_stop_while_it_is_made_is_repeated(bare, line, monkeypatch):
    def stopped(*arguments):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, line, stopped)
        with pytest.raises(Stopped):
            init("lineage", load_config(FEW), "mine")
    init("lineage", load_config(FEW), "mine")
    assert verify("lineage") == []
    assert len(Lineage("lineage").ledger) == 1
    assert torch.equal(stage_output("lineage", 0), peft_output("causal"))


@causal
def test_on_the_command_line(bare):
    few = ("threads=1", "max_completion_length=4", "training.num_train_epochs=1")
    result = perdure("init", "lineage", "--adapter", "mine", *few)
    assert result.status == 0, result.err
    assert "made on base base" in result.out
    learned = perdure("learn", "lineage", "colour", "colour-train.jsonl", "--json").json
    assert learned["parent"] == 0
    second_result = perdure("learn", "lineage", "animal", "animal-train.jsonl")
    assert second_result.status == 0, second_result.err
    base = base_at(Lineage("lineage"), None)
    assert base.peft.peft_config["default"].r == 3
    entry = json.loads(Path("lineage/ledger.jsonl").read_text().splitlines()[0])
    assert entry["kind"] == "adapter"


@causal
def test_an_adapter_goes_to_a_copy_of_its_base_but_not_to_another_one(bare):
    shutil.copytree("base", "copy")
    weights = load_file("base/model.safetensors")
    shutil.copytree("base", "other")
    weights = {name: tensor + 1e-3 for name, tensor in weights.items()}
    save_file(weights, "other/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PerdureError, match=r"mine: was trained on another base, 'base': its model"):
        init("lineage", load_config({**FEW, "base": "other"}), "mine")
    assert not Path("lineage").exists()
    init("lineage", load_config({**FEW, "base": "copy"}), "mine")
    assert Lineage("lineage").config.base == "copy"
