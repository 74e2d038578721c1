"""SuRe: how surprising a row is to the model before it learns the task, and which rows are kept."""

import json
from typing import Any

import pytest
import torch

from perdure.api import dry_run, run
from perdure.config import load_config
from perdure.data.tokens import features
from perdure.errors import PerdureError
from perdure.lineage.files import hash_folder
from perdure.lineage.loading import base_at
from perdure.seeds import derive
from perdure.train.memory import choose
from perdure.train.surprise import surprise
from place import learned, setting_for
from tiny import KINDS, shown_on_causal, tiny_rows
from train.engine import Stop, Stopped, tiny_base, tokenized


pytestmark = pytest.mark.own


def by_hand(base, row) -> float:
    """The mean of -log p of a row's answer, token by token, of the row alone."""
    ids, mask = torch.tensor([row["input_ids"]]), torch.ones(1, len(row["input_ids"])).long()
    more: dict[str, Any] = {}
    if base.kind == "seq2seq":  # the decoder starts with the padding token, 0
        more["decoder_input_ids"] = torch.tensor([[0, *row["labels"][:-1]]])
    base.model.eval()
    with torch.no_grad():
        log_p = base.model(input_ids=ids, attention_mask=mask, **more).logits[0].log_softmax(-1)
    if base.kind == "encoder":
        return -log_p[row["labels"]].item()
    ahead = int(base.kind == "causal")  # place t - 1 predicts token t
    answer = [(t, token) for t, token in enumerate(row["labels"]) if token != -100]
    return sum(-log_p[t - ahead, token].item() for t, token in answer) / len(answer)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_over_the_answers_tokens_of_each_row(kind):
    base = tiny_base(kind)
    rows = tokenized(base, "colour", 11)
    for i, row in enumerate(rows):  # prompts and answers of other lengths
        row["input_ids"] = [5] * (i % 3) + row["input_ids"]
        if kind == "causal":
            row["labels"] = [-100] * (i % 3) + row["labels"]
        if kind == "seq2seq" or (kind == "causal" and i % 2):
            row["labels"] = row["labels"] + [6] * (i % 2)
            row["input_ids"] = row["input_ids"] + ([6] if kind == "causal" else [])
    surprises = surprise(base, rows, 4)
    assert surprises == pytest.approx([by_hand(base, row) for row in rows], abs=1e-5)
    assert max(surprises) - min(surprises) > 0.01


def test_it_leaves_no_trace():
    base = tiny_base("causal", dropout=0.5)
    rows = tokenized(base, "colour", 9)
    base.model.train()
    base.model.get_submodule("base_model.model.model.layers.0").eval()
    modes = [module.training for module in base.model.modules()]
    state = torch.get_rng_state()
    first = surprise(base, rows, 4)
    assert first == surprise(base, rows, 4)  # no dropout
    assert [module.training for module in base.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in base.model.parameters())


@pytest.mark.parametrize(
    ("ratio", "names"), [(0.5, "acd"), (0.34, "ac"), (0.01, "a"), (1.0, "abcdef"), (0, "")]
)
def test_the_most_surprising_rows_are_kept_in_the_order_of_the_task(ratio, names):
    rows = [{"prompt": "p", "completion": name} for name in "abcdef"]
    surprises = [3.0, 0.5, 2.0, 1.0, 1.0, 0.1]  # of the equal ones, d and e, the first
    chosen = choose(rows, ratio, 0, surprises)
    assert "".join(row["completion"] for row in chosen) == names


@pytest.fixture(scope="module", params=KINDS)
def setting(request, tmp_path_factory):
    settings = setting_for(request.param, tmp_path_factory.mktemp(request.param))
    return {**settings, "memory": {"ratio": 0.2, "choose": "surprise"}, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def lineage(setting, tmp_path_factory):
    return learned(setting, tmp_path_factory.mktemp("run") / "lineage")


def memory_of(lineage, stage) -> list[dict]:
    lines = (lineage.folder(lineage.at(stage)) / "memory.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def spoken(row: dict) -> str:
    return f"{row['prompt']} {row['completion']}"


def expected(base, name: str, count: int, n: int = 40) -> list[str]:
    """The `count` rows of a task that surprise a model most, in any order."""
    rows = tiny_rows(name, n)
    encoded, _ = features(rows, base.tokenizer, base.kind, 64, 8, base.labels, name)
    surprises = [by_hand(base, row) for row in encoded]
    places = sorted(range(n), key=lambda i: -surprises[i])[:count]
    return sorted(spoken(rows[i]) for i in places)  # rows come more than once


def test_a_stage_keeps_what_surprised_the_model_of_the_stage_before(lineage):
    for stage, name in enumerate(("colour", "animal"), start=1):
        base = base_at(lineage, lineage.at(stage - 1) if stage > 1 else None)
        if base.kind == "encoder":
            labels = tuple(sorted({row["completion"] for row in tiny_rows(name, 40)}))
            base.model.grow(labels, derive(derive(0, "stage", stage, name), "head"))  # type: ignore
        memory = memory_of(lineage, stage)
        assert len(memory) == 8  # 0.2 of 40
        assert sorted(map(spoken, memory)) == expected(base, name, 8)


@shown_on_causal("setting")
def test_the_first_task_is_learned_as_with_any_other_choice(setting, lineage, tmp_path):
    balanced = learned({**setting, "memory": {"ratio": 0.2}}, tmp_path / "balanced")
    one, two = (hash_folder(of.folder(of.at(1))) for of in (lineage, balanced))
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"memory.jsonl"}


@shown_on_causal("setting")
def test_a_run_that_stopped_inside_a_task_keeps_the_same_rows(setting, lineage, tmp_path):
    config, lines = load_config({**setting, "lineage": str(tmp_path / "again")}), []
    with pytest.raises(Stopped):
        run(config, callbacks=[Stop(3, task=2)])
    again = run(load_config({**setting, "lineage": str(tmp_path / "again")}), say=lines.append)
    assert "animal: going on from step 2" in lines
    for stage in (1, 2):
        assert memory_of(again, stage) == memory_of(lineage, stage)


@shown_on_causal("setting")
def test_another_choice_is_refused_in_a_lineage(setting, lineage):
    with pytest.raises(PerdureError, match=r"settings \(memory.choose surprise, not balanced\)"):
        learned({**setting, "memory": {"ratio": 0.2}}, lineage.path)


def test_a_dry_run_and_joint_training_take_it_too(tmp_path):
    setting = setting_for("causal", tmp_path, n=16)
    setting |= {"memory": {"ratio": 0.2, "choose": "surprise"}, "mode": "joint", "max_length": 32}
    over = {"lineage": str(tmp_path / "run")}
    assert len(dry_run(load_config({**setting, **over}))["tasks"]) == 2
    joint = learned(setting, tmp_path / "run")
    memory = memory_of(joint, 2)  # of the new task, whatever else was learned with it
    assert sorted(map(spoken, memory)) == expected(base_at(joint, None), "animal", 3, 16)


def test_an_unknown_choice_is_told(tmp_path):
    with pytest.raises(PerdureError, match=r"choose: 'suprise' is not a choice; did you mean"):
        load_config({"memory": {"choose": "suprise"}})
