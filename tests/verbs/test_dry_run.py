"""A dry run counts what a run then does, writes nothing, and finds what would stop it."""

import json
from collections import namedtuple

import pytest
import torch
import yaml
from transformers import TrainerCallback

from command import perdure, tree
from perdure import PerdureError, load_config
from perdure.api import dry_run, run
from perdure.data.rows import read_rows
from perdure.data.tokens import features
from perdure.models.base import load_base
from perdure.models.layout import ADAPTER_WEIGHTS
from perdure.train.trainer import RehearsalCollator
from perdure.verbs import costs
from perdure.verbs.costs import TriedTask
from perdure.verbs.counting import Count, sample
from place import setting_for
from tiny import KINDS, shown_on_causal


pytestmark = pytest.mark.own


@pytest.fixture(scope="module", params=KINDS)
def setting(request, tmp_path_factory):
    return setting_for(request.param, tmp_path_factory.mktemp(request.param))


class StopsAt(TrainerCallback):
    """Someone stops the run when this task begins."""

    def __init__(self, task: str):
        self.task = task

    def on_train_begin(self, args, state, control, **kwargs):
        if self.task in args.output_dir:
            raise KeyboardInterrupt


def test_it_counts_what_the_run_then_does_and_writes_nothing(setting, tmp_path):
    method = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2}}
    config = load_config({**setting, "method": method, "lineage": str(tmp_path / "run")})
    estimate = dry_run(config)
    assert tree(tmp_path) == {}
    assert [task["task"] for task in estimate["tasks"]] == ["colour", "animal"]
    base = load_base(config.base, config.adapter, 0)
    assert estimate["trainable"] == sum(
        p.numel() for p in base.model.parameters() if p.requires_grad
    ) + (6 * 32 + 6 if base.kind == "encoder" else 0)
    lineage = run(config)
    steps = [lineage.timings()[str(entry["stage"])]["steps"] for entry in lineage.stages]
    assert [task["steps"] for task in estimate["tasks"]] == steps
    weights = lineage.folder(lineage.stages[0]) / "adapter_model.safetensors"
    assert 0 < estimate["stage_bytes"] <= 1.5 * weights.stat().st_size
    for split in ("count", "test_rows"):
        assert split in estimate["tasks"][0]
    assert estimate["tasks"][0]["test_rows"] == 10


def test_the_tokens_are_those_of_the_features(setting, tmp_path):
    config = load_config({**setting, "lineage": str(tmp_path / "run")})
    base = load_base(config.base, config.adapter, 0)
    rows = read_rows(setting["tasks"][0]["train"])
    labels = ["blue", "green", "red"] if base.kind == "encoder" else None
    encoded, _ = features(rows, base.tokenizer, base.kind, 512, 4, labels, "colour")
    target = 0 if base.kind != "seq2seq" else sum(len(row["labels"]) for row in encoded)
    count = dry_run(config)["tasks"][0]["count"]
    assert count["rows"] == 40
    assert count["tokens"] == sum(len(row["input_ids"]) for row in encoded) + target
    assert count["learned"] == {"encoder": 40}.get(base.kind, 80)  # an answer is a word and an end


@shown_on_causal("setting")
def test_a_lineage_goes_on_from_its_newest_stage(setting, tmp_path):
    config = load_config({**setting, "lineage": str(tmp_path / "run")})
    with pytest.raises(KeyboardInterrupt):
        run(config, callbacks=[StopsAt("animal")])
    before = tree(tmp_path)
    estimate = dry_run(config)
    assert [task["task"] for task in estimate["tasks"]] == ["animal"]
    assert estimate["tasks"][0]["old_tasks"] == 1
    assert tree(tmp_path) == before


@shown_on_causal("setting")
@pytest.mark.parametrize("method", ["olora", "inflora"])
def test_the_disk_of_adapters_that_grow_is_that_of_the_newest_two_files(method, setting, tmp_path):
    config = load_config({**setting, "method": method, "lineage": str(tmp_path / "run")})
    estimates = [dry_run(config)]
    with pytest.raises(KeyboardInterrupt):
        run(config, callbacks=[StopsAt("animal")])
    estimates.append(dry_run(config))
    lineage = run(config)
    sizes = [len(lineage.file(e, ADAPTER_WEIGHTS).read_bytes()) for e in lineage.stages]
    assert [len(estimate["tasks"]) for estimate in estimates] == [2, 1]
    for estimate in estimates:
        assert estimate["stage_bytes"] == pytest.approx(sizes[1] - sizes[0], rel=0.15)
        assert estimate["disk_bytes"] == pytest.approx(sum(sizes), rel=0.25)


@shown_on_causal("setting")
def test_joint_and_whole_weights_are_tried_as_well(setting, tmp_path):
    joint = dry_run(load_config({**setting, "mode": "joint"}))
    assert [task["count"]["rows"] for task in joint["tasks"]] == [40, 80]
    union = dry_run(load_config({**setting, "mode": "union"}))
    assert [task["count"]["rows"] for task in union["tasks"]] == [80]
    assert [task["test_rows"] for task in union["tasks"]] == [20]
    whole = dry_run(load_config({**setting, "adapter": None}))
    assert whole["trainable"] == whole["parameters"]
    assert whole["stage_bytes"] == 4 * whole["parameters"]


def test_much_padding_is_told_with_what_saves_it(tmp_path):
    setting = setting_for("causal", tmp_path, n=4)
    file = tmp_path / "uneven.jsonl"
    rows = [{"prompt": "a cat " * (1 + i % 12), "completion": "red"} for i in range(96)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"name": "uneven", "train": str(file)}]
    config = {**setting, "tasks": tasks, "lineage": str(tmp_path / "run")}
    config["training"] = {**config["training"], "per_device_train_batch_size": 4}
    grouped = {**config["training"], "train_sampling_strategy": "group_by_length"}
    at_random = dry_run(load_config(config))["tasks"][0]["padding"]
    less = dry_run(load_config({**config, "training": grouped}))["tasks"][0]["padding"]
    assert 0 <= less < at_random / 2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    output = perdure("run", tmp_path / "run.yaml", "--dry-run").out
    words = "training.train_sampling_strategy=group_by_length would leave"
    assert f"{words} {100 * less:.0f} % in uneven" in output
    assert f"{100 * at_random:.0f} %" in output
    packed = load_config({**config, "training": {**config["training"], "padding_free": True}})
    assert dry_run(packed)["tasks"][0]["padding"] == 0
    grouping = "training.train_sampling_strategy=group_by_length"
    assert words not in perdure("run", tmp_path / "run.yaml", grouping, "--dry-run").out


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_share_of_padding_is_that_of_the_batches(drop_last, tmp_path, monkeypatch):
    setting = setting_for("causal", tmp_path, n=4)
    file = tmp_path / "uneven.jsonl"
    rows = [{"prompt": "a cat " * (1 + i % 8), "completion": "red"} for i in range(61)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "train_sampling_strategy": "group_by_length",
        "dataloader_drop_last": drop_last,
    }
    config = load_config(
        {
            **setting,
            "tasks": [{"name": "uneven", "train": str(file)}],
            "training": training,
            "lineage": str(tmp_path / "run"),
        }
    )
    expected = dry_run(config)["tasks"][0]["padding"]
    masks, collate = [], RehearsalCollator.__call__

    def spied(self, features):
        batch = collate(self, features)
        masks.append(batch["attention_mask"].flatten())
        return batch

    monkeypatch.setattr(RehearsalCollator, "__call__", spied)
    run(config)
    assert len(masks) == (7 if drop_last else 8)
    assert round(1 - torch.cat(masks).float().mean().item(), 3) == expected


def test_the_first_step_has_the_longest_rows_and_the_others_all_lengths():
    rows = [{"prompt": str(i)} for i in range(100)]
    lengths = [(7 * i) % 100 for i in range(100)]
    chosen = sample(rows, lengths, 4, 3)
    sizes = [lengths[int(row["prompt"])] for row in chosen]
    assert sizes[:4] == [99, 98, 97, 96]
    assert len(sizes) == 12
    assert max(sizes[4:]) == 99
    assert min(sizes[4:]) < 20


def test_the_seconds_of_a_round_are_counted_once_a_round():
    trial = TriedTask(
        "t", Count(1, 1, 1, 1, 0), steps=20, old_tasks=1, step_seconds=[9.0, 1.0, 3.0]
    )
    assert trial.learning(period=8) == 20 * 1.0 + 3 * 2.0
    assert trial.learning(period=1) == 20 * 2.0
    trial.rows_a_step, trial.dev_rows, trial.measurements = 4, 12, 5
    assert trial.learning(period=1) == 20 * 2.0 + 5 * 12 * 1.0 / 4 / 3


@shown_on_causal("setting")
def test_a_full_disk_is_told(setting, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda place: usage(10, 9, 1))
    with pytest.raises(PerdureError, match=r"need .* GiB, .* free; free some space"):
        dry_run(load_config({**setting, "lineage": str(tmp_path / "run")}))


@shown_on_causal("setting")
def test_rows_that_do_not_fit_into_memory_are_told(setting, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("perdure.verbs.dry_run.learn_stage", full)
    with pytest.raises(PerdureError, match=r"'colour'.*lower per_device_train_batch_size"):
        dry_run(load_config(setting))


@shown_on_causal("setting")
def test_what_would_fail_at_the_last_task_is_found_at_once(setting, tmp_path):
    tasks = [dict(task) for task in setting["tasks"]]
    tasks[1]["metric"] = "rouge"
    with pytest.raises(PerdureError, match="unknown metric 'rouge'"):
        dry_run(load_config({**setting, "tasks": tasks}))
    tasks[1] |= {"metric": "exact_match", "training": {"learning_rat": 1}}
    with pytest.raises(PerdureError, match="task 'animal': training: unknown key"):
        dry_run(load_config({**setting, "tasks": tasks}))


@shown_on_causal("setting")
def test_a_base_that_is_not_here_is_not_downloaded(setting):
    with pytest.raises(PerdureError, match="no model could be loaded"):
        dry_run(load_config({**setting, "base": "nobody/nothing"}))


@shown_on_causal("setting")
def test_the_command_line_prints_a_table_or_json(setting, tmp_path):
    task = setting["tasks"][0]
    result = perdure("init", tmp_path / "m", "--base", setting["base"], "max_completion_length=4")
    assert result.status == 0
    before = tree(tmp_path)
    arguments = ("learn", tmp_path / "m", "colour", task["train"], "--test", task["test"])
    dry_run_result = perdure(*arguments, "training.num_train_epochs=2", "--dry-run", "--json")
    assert dry_run_result.status == 0, dry_run_result.err
    assert dry_run_result.json["tasks"][0]["steps"] == 10
    text = perdure(*arguments, "--dry-run").out
    for word in ("colour", "parameters:", "memory:", "disk:", "time:", "nothing was written"):
        assert word in text
    assert tree(tmp_path) == before
