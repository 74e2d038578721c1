"""A run makes once what its tasks have in common, in the bytes of making it anew for each."""

import json
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer, TrainerCallback

from marks import at_least
from perdure.api import dry_run, run
from perdure.config import load_config
from perdure.data import tokens
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import BaseLoader
from perdure.methods.replay import Replay
from perdure.models.kinds import AUTO
from perdure.train import arguments
from place import setting_for
from tiny import KINDS, tiny_rows


SMALL = {"learning_rate": 1e-2, "num_train_epochs": 1}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def setting(kind, tmp_path_factory):
    """Four tasks, of which no two have a row in common."""
    folder = tmp_path_factory.mktemp(kind)
    plain = setting_for(kind, folder, n=8)
    plain["tasks"] = []
    for i, mapping in enumerate(("colour", "animal", "count", "colour")):
        files = {split: folder / f"{i}-{split}.jsonl" for split in ("train", "test")}
        for (split, file), n in zip(files.items(), (8, 4), strict=True):
            rows = [
                {**row, "prompt": f"{split} {i} {n} {row['prompt']}"}
                for n, row in enumerate(tiny_rows(mapping, n, seed=i))
            ]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        plain["tasks"].append({"name": f"{mapping}-{i}", **{s: str(f) for s, f in files.items()}})
    return {**plain, "method": "replay", "memory": {"ratio": 0.5}, "training": SMALL}


class Counts:
    """How often each thing is made: `things` by name, and the rows that are tokenized."""

    def __init__(self, kind, monkeypatch):
        self.things, self.rows = Counter(), Counter()
        self.count(monkeypatch, Replay, "__init__", "methods")
        self.count(monkeypatch, arguments, "check_training", "arguments")
        self.count(monkeypatch, AutoTokenizer, "from_pretrained", "tokenizer")
        self.count(monkeypatch, AUTO[kind], "from_pretrained", "base")
        for name in ("_encode", "_encode_prompts"):
            self.count_rows(monkeypatch, name)

    def count(self, monkeypatch, owner, name, thing):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            self.things[thing] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    def count_rows(self, monkeypatch, name):
        original = getattr(tokens, name)

        def counted(rows, *rest, **keywords):
            self.rows.update((name, json.dumps(row)) for row in rows)
            return original(rows, *rest, **keywords)

        monkeypatch.setattr(tokens, name, counted)


def contents(path):
    """Everything that is in a hash: all but the timings and the lock."""
    return {n: h for n, h in hash_folder(path).items() if n not in ("timings.json", "lock")}


@pytest.mark.own
def test_a_run_makes_each_thing_once(kind, setting, tmp_path, monkeypatch):
    counts = Counts(kind, monkeypatch)
    run(load_config({**setting, "lineage": str(tmp_path / "run")}))
    assert len(Lineage(tmp_path / "run").stages) == 4
    expected = {"methods": 1, "arguments": 1, "tokenizer": 1, "base": 1}
    assert counts.things == expected
    assert set(counts.rows.values()) == {1}
    train = [row for function, row in counts.rows if function == "_encode" and '"train' in row]
    prompt_rows = [row for function, row in counts.rows if function == "_encode_prompts"]
    assert (len(train), len(prompt_rows)) == (4 * 8, 4 * 4)


@pytest.mark.own
def test_so_does_a_dry_run_but_for_the_arguments_of_its_three_steps(
    kind, setting, tmp_path, monkeypatch
):
    counts = Counts(kind, monkeypatch)
    dry_run(load_config({**setting, "lineage": str(tmp_path / "run")}))
    expected = {"methods": 1, "arguments": 2, "tokenizer": 1, "base": 1}
    assert counts.things == expected
    assert set(counts.rows.values()) == {1}


@pytest.mark.parametrize("kind", ["causal"], indirect=True)
def test_a_task_with_a_training_of_its_own_has_arguments_of_its_own(
    kind, setting, tmp_path, monkeypatch
):
    counts = Counts(kind, monkeypatch)
    tasks = [*setting["tasks"][:2], {**setting["tasks"][2], "training": {"weight_decay": 0.1}}]
    run(load_config({**setting, "tasks": tasks, "lineage": str(tmp_path / "run")}))
    assert counts.things["arguments"] == 2


VARIANTS = {
    "sequential": {},
    "each task its own adapter": {"mode": "per_task", "method": "sequential", "memory": {}},
    "bf16": {"training": {**SMALL, "bf16": True}},
    "dropout": {"adapter": {"lora_dropout": 0.2}, "method": ["hft", "replay", "recurrent_kif"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", at_least(["causal"], ["causal", "encoder"]), indirect=True)
def test_a_base_that_stays_gives_the_bytes_of_one_that_is_loaded_again(
    variant, kind, setting, tmp_path, monkeypatch
):
    settings = {**setting, "tasks": setting["tasks"][:3], **VARIANTS[variant]}
    with monkeypatch.context() as patch:
        counts = Counts(kind, patch)
        run(load_config({**settings, "lineage": str(tmp_path / "stays")}))
    assert counts.things["base"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(BaseLoader, "_from_memory", lambda self, adapter, begins: None)
        counts = Counts(kind, patch)
        run(load_config({**settings, "lineage": str(tmp_path / "again")}))
    assert counts.things["base"] == 4
    assert contents(tmp_path / "stays") == contents(tmp_path / "again")


class Leaves(TrainerCallback):
    """Leaves something on the model when its first task has ended."""

    def __init__(self, leave):
        self.leave, self.left = leave, False

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not self.left:
            self.leave(model)
        self.left = True


def a_hook(model):
    model.register_forward_hook(lambda *_: None)


def a_frozen_weight(model):
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.data.add_(0.01)


def a_weight_that_is_trained(model):
    next(p for p in model.parameters() if not p.requires_grad).requires_grad_(True)


def a_part(model):
    model.extra = torch.nn.Identity()


@pytest.mark.parametrize("kind", ["causal"], indirect=True)
@pytest.mark.parametrize("leave", [a_hook, a_frozen_weight, a_weight_that_is_trained, a_part])
def test_a_base_that_learning_has_left_something_on_is_loaded_again(
    leave, kind, setting, tmp_path, monkeypatch
):
    counts = Counts(kind, monkeypatch)
    settings = {**setting, "tasks": setting["tasks"][:3], "scoring": {"forward": False}}
    run(load_config({**settings, "lineage": str(tmp_path / "run")}), callbacks=[Leaves(leave)])
    assert counts.things["base"] == 2
