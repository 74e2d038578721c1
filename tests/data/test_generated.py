"""The generated stream, the text the default model was trained on, and the model itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import perdure.data
from perdure.data.generated import SPLITS, TASKS, generated_rows, generated_tasks, question
from perdure.data.pretraining import pretraining_rows
from perdure.data.stream import open_split
from perdure.data.words import vocabulary
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


DEFAULT_MODEL = Path(perdure.data.__file__).parents[1] / "default_model"
NUM_PRETRAINING_ROWS = 64_000  # as many as scripts/train_default_model.py draws


def all_rows():
    return [row for task in TASKS for split in SPLITS for row in generated_rows(task, split, 100)]


def test_rows_depend_on_task_split_and_seed_alone():
    assert generated_tasks() == generated_tasks()
    first = generated_rows("topic", "train", 50, seed=3)
    assert first == generated_rows("topic", "train", 500, seed=3)[:50]
    assert first != generated_rows("topic", "train", 50, seed=4)


def test_the_first_row_is_the_same_on_every_machine():
    text = "wendy proudly painted four long black horses in the market"
    prompt = f"read : {text} . question : which mood of manner ? answer :"
    expected = [{"prompt": prompt, "completion": " joy"}]
    assert generated_rows("mood", "train", 1, seed=0) == expected


def test_no_prompt_is_in_both_splits_or_twice():
    for task in generated_tasks():
        assert task.test is not None
        train = [row["prompt"] for row in task.train.rows]
        test = [row["prompt"] for row in task.test.rows]
        assert (len(train), len(test)) == (500, 100)
        assert len({*train, *test}) == 600


def test_answers_of_different_tasks_have_no_word_in_common():
    answers = [{row["completion"] for row in generated_rows(task, "train", 300)} for task in TASKS]
    assert [len(words) for words in answers] == [6, 4, 4, 4]
    assert len(set().union(*answers)) == sum(map(len, answers))


def test_answers_are_balanced():
    for task in TASKS:
        answers = [row["completion"] for row in generated_rows(task, "train", 500)]
        counts = [answers.count(answer) for answer in set(answers)]
        assert max(counts) < 2 * min(counts)


def test_a_split_is_made_again_from_its_source():
    for task in generated_tasks(train=20, test=10, seed=5):
        source = json.loads(json.dumps(task.train.source))
        assert open_split(source).sha256 == task.train.sha256


def test_unknown_names_are_told_in_one_line():
    with pytest.raises(PerdureError, match="did you mean 'topic'"):
        generated_rows("topik", "train", 1)
    with pytest.raises(PerdureError, match="valid: test, train"):
        generated_rows("topic", "dev", 1)


def test_generating_rows_does_not_import_torch():
    modules = "perdure.data.generated, perdure.data.pretraining"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_model_was_not_trained_on_the_stream():
    trained_on = pretraining_rows(NUM_PRETRAINING_ROWS)
    prompts = {row["prompt"] for row in trained_on}
    assert prompts.isdisjoint(row["prompt"] for row in all_rows())
    text = "\n".join(prompts)
    for task in TASKS:
        assert question(task) not in text
    # Its answer words were seen, but only to be copied: never as the answer to a question.
    answers = {row["completion"] for row in all_rows()}
    trained_answers = {
        row["completion"] for row in trained_on if row["prompt"].startswith("read :")
    }
    assert answers.isdisjoint(trained_answers)


def test_every_word_is_in_the_vocabulary_of_the_default_model():
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    for row in all_rows() + pretraining_rows(500, seed=1):
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(vocabulary()) + 4


def test_the_default_model_weighs_at_most_4_megabytes():
    assert (DEFAULT_MODEL / "model.safetensors").stat().st_size <= 4_000_000


@torch.no_grad()
def test_the_default_model_answers_pretraining_questions_it_never_saw():
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)
    rows = pretraining_rows(50, seed=1)
    right = 0
    for row in rows:
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
        right += tokenizer.decode(output, skip_special_tokens=True) == row["completion"].strip()
    assert right / len(rows) > 0.8
