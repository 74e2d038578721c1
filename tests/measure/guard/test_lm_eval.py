"""lm-eval's tasks on two models: its numbers are those of a computation without it."""

import random

import numpy as np
import pytest
import torch
from asked import TEMPLATE, subject
from lm_eval_files import CHOICES, QUESTIONS, write_tasks

from perdure.config import Gate, LmEvalSettings
from perdure.errors import PerdureError
from perdure.measure.gate import beyond
from perdure.measure.guard import lm_eval_tasks
from perdure.measure.guard.lm_eval_result import (
    Metric,
    compare_tasks,
    short_lines,
    since,
    task_words,
)
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.guard.loss import is_loss, with_lm_eval
from perdure.measure.guard.words import words
from perdure.measure.statistics import sign_test


def label(model) -> list[int]:
    """For each question the choice with the larger sum of its tokens' log-probabilities."""
    network, tokenizer = model.base.model, model.base.tokenizer
    labels = []
    for question in QUESTIONS:
        sums = []
        for choice in CHOICES:
            start = len(tokenizer(question)["input_ids"])
            ids = torch.tensor(tokenizer(f"{question} {choice}")["input_ids"])
            with torch.no_grad():
                log_probabilities = network(ids[None]).logits[0].log_softmax(-1)
            sums.append(
                sum(log_probabilities[i - 1, ids[i]].item() for i in range(start, len(ids)))
            )
        labels.append(int(np.argmax(sums)))
    return labels


def written(model) -> list[str]:
    """For each question the three likeliest tokens in turn, up to an end token or a stop."""
    network, tokenizer = model.base.model, model.base.tokenizer
    answers = []
    for question in QUESTIONS:
        ids = tokenizer(question)["input_ids"]
        start = len(ids)
        while len(ids) < start + 3 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                ids = [*ids, int(network(torch.tensor([ids])).logits[0, -1].argmax())]
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        answers.append(text.partition(".")[0])
    return answers


@pytest.fixture(scope="module")
def models():
    return subject("causal", 0, "base"), subject("causal", 1, "stage")


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Tasks that the first model answers correctly, but for the first four documents."""
    base, _ = models
    labels, answers = label(base), written(base)
    labels[:4] = [1 - right for right in labels[:4]]
    answers[:4] = ["two two"] * 4
    return write_tasks(tmp_path_factory.mktemp("tasks"), labels, answers), labels, answers


def loaded(folder, base, **settings) -> LmEvalTasks:
    settings = {"tasks": ["choose", "write"], "include_path": str(folder), **settings}
    tasks = LmEvalTasks(LmEvalSettings(**settings))
    tasks.try_on(base)
    return tasks


def test_the_numbers_are_those_of_a_computation_without_lm_eval(models, folder, capfd):
    base, stage = models
    folder, labels, answers = folder
    tasks = loaded(folder, base.base)
    before, now = tasks.ask(base), tasks.ask(stage)
    result = compare_tasks(tasks.metrics, before.values, now.values)
    right = {
        "choose": [
            [is_label == label for is_label, label in zip(label_of, labels, strict=True)]
            for label_of in (label(base), label(stage))
        ],
        "write": [
            [text == answer for text, answer in zip(texts, answers, strict=True)]
            for texts in (written(base), written(stage))
        ],
    }
    right = {name: np.array(of_models, dtype=float) for name, of_models in right.items()}
    assert tasks.metrics == {
        "choose": Metric("acc", "none", higher_is_better=True),
        "write": Metric("exact_match", "none", higher_is_better=True),
    }
    for name, (was_right, is_right) in right.items():
        task = result[name]
        assert list(before.values[name].values()) == was_right.tolist()
        assert list(now.values[name].values()) == is_right.tolist()
        assert task["documents"] == len(QUESTIONS)
        assert task["before"] == pytest.approx(was_right.mean()) == pytest.approx(8 / 12)
        assert task["now"] == pytest.approx(is_right.mean())
        fell, rose = int((was_right > is_right).sum()), int((was_right < is_right).sum())
        assert (task["fell"], task["rose"]) == (fell, rose)
        assert task["p"] == sign_test(fell, rose)
        assert task["net"] == pytest.approx((fell - rose) / 12)
        assert task["lost"] == (sign_test(fell, rose) < 0.025 and fell - rose >= 0.03 * 12)
    assert result["write"]["fell"] == 8  # no answer of the other model is right
    assert result["write"]["lost"]
    assert capfd.readouterr() == ("", "")


def test_the_log_likelihoods_are_exact(models, folder):
    base, _ = models
    tasks = loaded(folder[0], base.base, tasks=["choose"], limit=1)
    responses = list(tasks.ask(base).responses.values())
    tokenizer, ours = base.base.tokenizer, []
    for choice in CHOICES:
        ids = torch.tensor(tokenizer(f"{QUESTIONS[0]} {choice}")["input_ids"])
        with torch.no_grad():
            log_probabilities = base.base.model(ids[None]).logits[0].log_softmax(-1)
        ours.append(float(log_probabilities[-3, ids[-2]] + log_probabilities[-2, ids[-1]]))
    assert [likelihood for likelihood, _ in responses] == pytest.approx(ours, rel=1e-4)


def test_nothing_else_changes(models, folder):
    base, _ = models
    network = base.base.model
    network.train()
    tokenizer = base.base.tokenizer
    padding, settings = tokenizer.padding_side, network.generation_config.to_dict()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    tasks = loaded(folder[0], base.base, limit=2)
    first = tasks.ask(base)
    assert network.training
    network.eval()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (tokenizer.padding_side, network.generation_config.to_dict()) == (padding, settings)
    assert "tie_weights" not in vars(network)
    assert tasks.ask(base) == first


def test_known_responses_are_not_asked_again(models, folder, monkeypatch):
    base, _ = models
    tasks = loaded(folder[0], base.base, limit=3)
    first = tasks.ask(base)
    assert len(first.responses) == 3 * 2 + 3
    monkeypatch.setattr("perdure.measure.guard.lm_eval_model.HFLM", None)  # would fail if made
    again = tasks.ask(base, first.responses)
    assert again == first


def test_examples_and_the_chat_template_are_in_the_prompt(models, folder, tmp_path):
    base, _ = models
    plain = loaded(folder[0], base.base, tasks=["write"], limit=1)
    with pytest.raises(PerdureError, match=r"apply_chat_template: base has no chat template"):
        loaded(folder[0], base.base, apply_chat_template=True)
    chat = subject("causal", 0, "base", TEMPLATE)
    templated = loaded(folder[0], chat.base, tasks=["write"], limit=1, apply_chat_template=True)
    assert set(plain.ask(base).responses).isdisjoint(templated.ask(chat).responses)
    shots = loaded(folder[0], base.base, tasks=["write"], limit=2, num_fewshot=1)
    prompts = [instance.args[0] for instance in shots.tasks["write"].instances]
    assert all(prompt.count("question") == 2 for prompt in prompts)


def test_other_documents_have_another_hash(models, folder, tmp_path):
    base, _ = models
    first = loaded(folder[0], base.base, tasks=["write"]).documents
    assert loaded(folder[0], base.base, tasks=["write"]).documents == first
    assert loaded(folder[0], base.base, tasks=["write"], limit=2).documents != first


def test_a_metric_of_which_less_is_better_falls_when_it_rises():
    metrics = {"a": Metric("error", "none", higher_is_better=False)}
    before = {"a": {str(i): 1.0 for i in range(20)}}
    now = {"a": {str(i): 2.0 if i < 9 else 0.5 if i < 10 else 1.0 for i in range(20)}}
    task = compare_tasks(metrics, before, now)["a"]
    assert (task["fell"], task["rose"], task["before"]) == (9, 1, 1.0)
    assert task["lost"]


def test_a_document_without_a_finite_value_any_more_has_fallen():
    metrics = {"a": Metric("acc", "none", higher_is_better=True)}
    before, now = {"a": {"x": 1.0, "y": 0.0, "z": None}}, {"a": {"x": 1.0, "y": None, "z": 1.0}}
    task = compare_tasks(metrics, before, now)["a"]
    assert (task["documents"], task["before"], task["now"]) == (2, 0.5, None)
    assert (task["fell"], task["rose"]) == (1, 0)
    assert len(beyond(Gate(general=1.0), {"old": {}, "general": general_of({"a": task})})) == 1
    nothing = compare_tasks(metrics, before, {"a": dict.fromkeys("xyz")})
    assert (nothing["a"]["now"], nothing["a"]["fell"]) == (None, 2)
    assert "acc 0.500 -> no value, 2 of 2 documents fell" in task_words(nothing)["a"]
    assert len(beyond(Gate(general=1.0), {"old": {}, "general": general_of(nothing)})) == 1


def general_of(tasks):
    return with_lm_eval({"unmeasured": "too short"}, tasks)


def test_a_loss_is_judged_for_as_many_tasks_as_there_are():
    assert is_loss(5, 0, 100)  # p = 0.031
    assert not is_loss(5, 0, 100, comparisons=2)
    assert not is_loss(6, 0, 300)  # 2 of 100
    tasks = {
        name: compare_tasks(
            {name: Metric("acc", "none", higher_is_better=True)},
            {name: {str(i): 1.0 for i in range(9)}},
            {name: {str(i): float(i >= fell) for i in range(9)}},
        )[name]
        for name, fell in (("bad", 9), ("good", 0))
    }
    lines = task_words(tasks)
    assert lines["good"].endswith("acc 1.000 -> 1.000, none of 9 documents fell: nothing lost")
    assert lines["bad"].endswith(
        "acc 1.000 -> 0.000, 9 of 9 documents fell, 0 rose, p = 0.002: lost"
    )
    many = {f"task{number}": tasks["good"] for number in range(30)}
    assert short_lines(many) == ["general ability: 30 of lm-eval's 30 tasks are not lost"]
    checks = {"lost": False, "judged": False, "reference": "b", "passed_by_reference": 0, "rows": 9}
    checks |= {"kl": 0.5}
    result = with_lm_eval(checks, tasks)
    assert result["lost"]
    assert "lost_before" not in result
    assert words(result)[0].startswith("general ability: not judged")
    assert words(result)[2] == lines["bad"]


def test_what_a_stage_before_lost_is_known():
    metrics = {"a": Metric("acc", "none", higher_is_better=True)}
    base, bad = ({"a": {str(i): value for i in range(9)}} for value in (1.0, 0.0))
    task = compare_tasks(metrics, base, bad)
    first = since(task, metrics, last_values={}, last_tasks={}, now=bad)
    assert (first["a"]["since"]["fell"], first["a"]["lost_before"]) == (0, False)
    second = since(task, metrics, last_values=bad, last_tasks=first, now=bad)
    assert second["a"]["lost_before"]
    general = {"unmeasured": "too short"}
    assert with_lm_eval(general, second)["lost_before"]
    assert not with_lm_eval(general, first)["lost_before"]
    both = with_lm_eval({"lost": True, "lost_before": False}, second)
    assert (both["lost"], both["lost_before"]) == (True, False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("chose", None, r"lm-eval has no task 'chose'; did you mean 'choose'\?"),
        ("broken", "task: [", r"broken\.yaml: not valid YAML at line"),
        (
            "gone",
            "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\n"
            "test_split: test\ndoc_to_text: q\ndoc_to_target: a\noutput_type: generate_until\n",
            r"gone cannot be loaded: FileNotFoundError: .*relative to the working directory",
        ),
        ("hub", "metric_list: [{metric: bertscore}]", r"metric bertscore is code on the hub"),
        (
            "unpaired",
            "metric_list: [{metric: brier_score, aggregation: brier_score}]",
            r"no metric of unpaired is the mean of a number for each document",
        ),
        (
            "long",
            "output_type: generate_until\ndoc_to_choice: null\ngeneration_kwargs: {until: ['.']}\n"
            "metric_list: [{metric: exact_match}]",
            r"long asks for answers of up to 256 tokens, which leave no room .* 128 positions",
        ),
        ("unsafe", "unsafe_code: true", r"unsafe runs code that the model has written"),
    ],
)
def test_a_task_that_cannot_be_run(models, folder, tmp_path, monkeypatch, name, text, message):
    base, _ = models
    tasks = write_tasks(tmp_path / "tasks", folder[1], folder[2])
    if text is not None:
        include = "" if text.startswith("task") else f"include: choose.yaml\ntask: {name}\n"
        (tasks / f"{name}.yaml").write_text(include + text)
    # lm-eval's own tasks are many, and of no use here.
    monkeypatch.setattr(
        lm_eval_tasks,
        "_with_lm_evals_own",
        lambda folder, _: lm_eval_tasks_of(folder),
    )
    with pytest.raises(PerdureError, match=message):
        loaded(tasks, base.base, tasks=[name])


def lm_eval_tasks_of(folder):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False)
