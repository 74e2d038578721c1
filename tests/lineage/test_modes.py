"""The modes, the model card, and what a lineage says of itself."""

from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import TrainerCallback

from perdure import PerdureError, api, load_config
from perdure.api import evaluate
from perdure.data.rows import read_rows
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.measure.matrix import backward_transfer, overall
from perdure.verbs.verify import verify
from place import setting_for
from tiny import KINDS, shown_on_causal


@pytest.fixture(scope="module", params=KINDS)
def setting(request, tmp_path_factory):
    return setting_for(request.param, tmp_path_factory.mktemp(request.param))


class Starts(TrainerCallback):
    """Of every task: how many steps it has, and whether its adapter starts from nothing."""

    def __init__(self):
        self.tasks = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        second = [p for n, p in model.named_parameters() if "lora_B" in n]
        self.tasks.append((state.max_steps, all(not p.any() for p in second)))


def run(setting, path, **more):
    starts = Starts()
    lineage = api.run(load_config({**setting, **more, "lineage": str(path)}), callbacks=[starts])
    return lineage, starts.tasks


def test_sequential_goes_on_from_the_stage_before(setting, tmp_path):
    _, starts = run(setting, tmp_path / "run")
    assert starts == [(5, True), (5, False)]


@shown_on_causal("setting")
@pytest.mark.own
def test_joint_learns_the_union_of_the_tasks_so_far_from_the_base(setting, tmp_path):
    lineage, starts = run(setting, tmp_path / "run", mode="joint")
    assert starts == [(5, True), (10, True)]
    assert all(cell is not None for cell in lineage.matrix().rows[-1])


@shown_on_causal("setting")
@pytest.mark.own
def test_union_learns_all_tasks_in_one_stage_and_scores_each(setting, tmp_path):
    lineage, starts = run(setting, tmp_path / "run", mode="union")
    assert starts == [(10, True)]
    matrix = lineage.matrix()
    assert (matrix.tasks, matrix.learned_at) == (("colour", "animal"), (1, 1))
    assert None not in matrix.rows[1]
    assert backward_transfer(matrix) is None
    assert overall(matrix) == fmean(matrix.rows[1])
    scores = {task: cell["score"] for task, cell in evaluate(tmp_path / "run").items()}
    assert scores == dict(zip(matrix.tasks, matrix.rows[1], strict=True))
    assert verify(tmp_path / "run") == []
    again, starts = run(setting, tmp_path / "run", mode="union")
    assert starts == []
    assert again.ledger == lineage.ledger


@shown_on_causal("setting")
@pytest.mark.own
def test_union_tells_tasks_of_one_name_apart(setting, tmp_path):
    stream = [setting["tasks"][0], {**setting["tasks"][0], "name": "animal"}, setting["tasks"][0]]
    lineage, _ = run({**setting, "tasks": stream}, tmp_path / "run", mode="union")
    assert lineage.matrix().tasks == ("colour", "animal", "colour@3")


@shown_on_causal("setting")
@pytest.mark.own
def test_per_task_learns_a_fresh_adapter_each_and_forgets_nothing(setting, tmp_path):
    lineage, starts = run(setting, tmp_path / "run", mode="per_task")
    assert starts == [(5, True), (5, True)]
    assert backward_transfer(lineage.matrix()) == 0


@shown_on_causal("setting")
@pytest.mark.own
def test_scoring_old_tasks_only_at_the_end_gives_the_same_op_and_bwt(setting, tmp_path):
    each, _ = run(setting, tmp_path / "each")
    last, _ = run({**setting, "scoring": {"old": "last"}}, tmp_path / "last")
    for metric in (overall, backward_transfer):
        assert metric(each.matrix()) == metric(last.matrix())


@shown_on_causal("setting")
@pytest.mark.own
def test_memory_holds_rows_of_train_only_and_the_ratio_of_them(setting, tmp_path):
    lineage, _ = run(setting, tmp_path / "run")
    for entry, task in zip(lineage.stages, setting["tasks"], strict=True):
        memory = read_rows(lineage.folder(entry) / "memory.jsonl")
        train = read_rows(task["train"])
        assert len(memory) == 4
        assert all(row in train for row in memory)


@shown_on_causal("setting")
@pytest.mark.own
def test_the_same_task_learned_again_is_told_apart_by_its_stage(setting, tmp_path):
    first = setting["tasks"][0]
    again = {**first, **{split: setting["tasks"][1][split] for split in ("train", "test")}}
    if "encoder" in setting["base"]:
        again["options"] = ["bird", "cat", "dog"]
    lineage, _ = run({**setting, "tasks": [first, again]}, tmp_path / "run")
    assert lineage.matrix().tasks == ("colour", "colour@2")


@shown_on_causal("setting")
@pytest.mark.own
def test_a_missing_or_changed_test_file_gives_null_and_a_warning(setting, tmp_path):
    files = {}
    for split in ("train", "test"):
        files[split] = tmp_path / f"{split}.jsonl"
        files[split].write_text(Path(setting["tasks"][0][split]).read_text())
    task = {"name": "colour", **{split: str(path) for split, path in files.items()}}
    run({**setting, "tasks": [task]}, tmp_path / "run")
    lines = []
    files["test"].write_text(files["test"].read_text().replace("alpha", "beta"))
    assert evaluate(tmp_path / "run", say=lines.append) == {"colour": {"score": None}}
    assert "have changed" in lines[0]
    files["test"].unlink()
    assert evaluate(tmp_path / "run", say=lines.append) == {"colour": {"score": None}}
    assert "no such file" in lines[1] or "not" in lines[1]


def test_evaluate_gives_the_scores_of_the_stage(setting, tmp_path):
    lineage, _ = run(setting, tmp_path / "run")
    for entry in lineage.stages:
        scores = lineage.scores(entry)["after"]
        evaluated = evaluate(tmp_path / "run", entry["stage"], tasks=list(scores))
        assert evaluated == scores


def test_the_lines_of_the_model_card_load_the_stage(setting, tmp_path):
    """They run as they stand, without Perdure, and give what the stage gives."""
    lineage, _ = run(setting, tmp_path / "run")
    folder = lineage.folder(lineage.stages[-1])
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert "perdure" not in code
    prompt = read_rows(setting["tasks"][1]["test"])[0]["prompt"]
    names: dict = {}
    exec(code.replace('stage = "."', f'stage = "{folder}"').replace("some text", prompt), names)
    base = base_at(Lineage(tmp_path / "run"), lineage.stages[-1])
    base.model.eval()
    batch = dict(names["tokenizer"](prompt, return_tensors="pt"))
    batch = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if base.kind == "encoder":
            best = base.model(**batch).logits.argmax(-1).item()
            assert names["label"] == base.labels[best]
            return
        if base.kind == "seq2seq":
            batch["decoder_input_ids"] = batch["input_ids"]
        assert torch.equal(names["model"](**batch).logits, base.model(**batch).logits)


@pytest.mark.own
def test_a_folder_that_is_no_lineage_is_told_with_the_way_to_make_one(tmp_path):
    with pytest.raises(PerdureError, match="perdure init"):
        Lineage(tmp_path)
