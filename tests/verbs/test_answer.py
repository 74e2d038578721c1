"""`try`: a stage answers prompts as it answers test rows."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from command import perdure, tree
from perdure import PerdureError
from perdure.api import answer, evaluate
from perdure.config import load_config
from perdure.data.rows import read_rows
from perdure.measure import predict
from place import init, learned, setting_for
from tiny import KINDS


pytestmark = pytest.mark.own


def prompts() -> list[str]:
    return [row["prompt"] for row in read_rows(Path("animal-test.jsonl"))]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(kind, stage) for kind in KINDS for stage in (None, 1, 0) if (kind, stage) != ("encoder", 0)],
)
def test_a_prompt_is_answered_as_the_test_row_is(place, kind, stage):
    options = ["bird", "cat", "dog"] if kind == "encoder" else []
    if stage == 1 and kind == "encoder":
        options = ["blue", "green", "red"]
    name = "colour" if stage == 1 else "animal"
    evaluate("lineage", stage, tasks=[name], predictions="said.jsonl")
    rows = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    answers = answer("lineage", [row["prompt"] for row in rows], stage, options)
    for full, row in zip(answers, rows, strict=True):
        # Where answers are scored, writing ends with the decision: a wrong one is shown so far.
        begun = full.startswith(row["prediction"]) and row["score"] == 0
        assert full == row["prediction"] or begun


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_options_are_chosen_as_evaluate_chooses_them(place):
    evaluate("lineage", tasks=["animal"], mode="options", predictions="said.jsonl")
    rows = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    answers = answer("lineage", prompts(), options=["bird", "cat", "dog"])
    assert answers == [row["prediction"] for row in rows]


def test_in_bf16_as_well(tmp_path, monkeypatch):
    """The test rows are scored under autocast then."""
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=24)
    setting["training"]["bf16"] = True
    learned(setting, "lineage")
    autocast, original = [], predict._generate

    def generate(*arguments, **settings):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return original(*arguments, **settings)

    monkeypatch.setattr(predict, "_generate", generate)
    evaluate("lineage")
    answer("lineage", prompts())
    assert autocast == [True, True, True]


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_chooses_among_all_it_has_learned(place):
    labels = {"bird", "blue", "cat", "dog", "green", "red"}
    assert set(answer("lineage", prompts())) <= labels
    assert set(answer("lineage", prompts(), options=["cat"])) == {"cat"}
    assert set(answer("lineage", prompts(), 1)) <= {"blue", "green", "red"}
    with pytest.raises(
        PerdureError, match="it has learned, not 'cat'; there are: blue, green, red"
    ):
        answer("lineage", prompts(), 1, ["cat"])
    with pytest.raises(PerdureError, match="there are: none yet"):
        answer("lineage", prompts(), 0)


def test_on_the_command_line_an_answer_is_a_line(place):
    before = tree(place)
    questions = prompts()[:2]
    result = perdure("try", "lineage", *questions)
    answers = answer("lineage", questions)
    assert (result.status, result.out.splitlines()) == (0, answers)
    assert result.err == "(the answer is empty)\n" * answers.count("")  # not a blank line alone
    pairs = perdure("try", "lineage", *questions, "--stage", 1, "--json").json
    assert [pair["prompt"] for pair in pairs] == questions
    assert [pair["answer"] for pair in pairs] == answer("lineage", questions, 1)
    option = perdure("try", "lineage", questions[0], "--option", "cat", "--option", "dog")
    assert option.out.strip() in ("cat", "dog")
    assert tree(place) == before


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_tokens_limit_what_is_written(place):
    one, four = (answer("lineage", ["red red"], 0, max_new_tokens=n)[0] for n in (1, 4))
    assert len(one.split()) <= 1
    assert four.startswith(one)


def test_a_prompt_too_long_loses_its_middle(place):
    long = "question " + "the " * 2000 + "answer"
    assert len(answer("lineage", [long])) == 1


def test_chat_goes_through_the_template(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained("base")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}question {{ m['content'] }} answer "
        "{% else %}{{ m['content'] }} </s>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained("base")
    init("lineage", load_config({k: v for k, v in setting.items() if k != "tasks"}))
    # a template writes its special tokens itself, so this one gives a prompt without <s>
    answers = answer("lineage", ["red"], chat=True)
    assert answers != answer("lineage", ["red"])
    assert perdure("try", "lineage", "red", "--chat").out == answers[0] + "\n"


@pytest.mark.parametrize("kind", ["causal"])
def test_chat_without_a_template(place):
    with pytest.raises(PerdureError, match="no chat template"):
        answer("lineage", ["red"], chat=True)


@pytest.mark.parametrize("kind", ["causal"])
def test_an_empty_prompt(place):
    with pytest.raises(PerdureError, match="the prompt is empty"):
        answer("lineage", ["red", " "])
