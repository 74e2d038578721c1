"""`chat`: a conversation with the stages of a lineage, line by line."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import perdure as package
from command import perdure, refused, tree, write_rows
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.measure.streaming import TextStream
from place import init, setting_for
from tiny import KINDS, shown_on_causal, tiny_rows


pytestmark = pytest.mark.own

ONE, TWO = "question the alpha beta = answer :", "question the beta beta = answer :"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}answer {{ m['content'] }} </s>"
    "{% else %}{{ 'the' if m['role'] == 'system' else 'question' }} {{ m['content'] }} "
    "{% endif %}{% endfor %}{{ 'answer ' if add_generation_prompt }}"
)


def conversations(task: str) -> list[dict]:
    """The rows of a task as conversations of one and of two turns."""
    messages = [asked(row["prompt"].strip(), row["completion"]) for row in tiny_rows(task, 24)]
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return [{"messages": turn} for turn in [*messages, *(one + two for one, two in pairs)]]


def asked(*contents: str) -> list[dict[str, str]]:
    """A conversation in which the user and the assistant take turns."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A lineage of two stages, whose base has a chat template, and a lineage of plain text."""
    folder = tmp_path_factory.mktemp("chat")
    setting = {k: v for k, v in setting_for("causal", folder).items() if k != "tasks"}
    setting["training"] = {"learning_rate": 0.03, "num_train_epochs": 8}
    init(folder / "plain", load_config({**setting, "base": str(folder / "base")}))
    (folder / "templated").mkdir()
    for file in (folder / "base").iterdir():
        (folder / "templated" / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder / "templated")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "templated")
    init(folder / "lineage", load_config({**setting, "base": str(folder / "templated")}))
    for task in ("colour", "animal"):
        package.learn(folder / "lineage", task, conversations(task))
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def talk(monkeypatch, *lines: str, options: tuple[object, ...] = (), lineage: str = "lineage"):
    """Run `perdure chat` with these lines on stdin."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return perdure("chat", lineage, *options)


def test_an_answer_is_that_of_try_for_the_whole_conversation(here):
    conversation = package.chat("lineage")
    first = conversation.ask(ONE)
    second = conversation.ask(TWO)
    assert first == package.answer("lineage", ONE)[0]
    messages = asked(ONE, first, TWO)
    assert second == package.answer("lineage", messages=messages)[0]
    conversation.system = "blue"
    messages = [{"role": "system", "content": "blue"}, *messages]
    messages += asked("", second, ONE)[1:]
    assert conversation.ask(ONE) == package.answer("lineage", messages=messages)[0]
    conversation.reset()
    conversation.system = None
    assert conversation.ask(ONE) == first


def test_each_stage_answers_with_its_own_weights_only(here):
    alone = [package.answer("lineage", ONE, stage)[0] for stage in (0, 1, 2)]
    assert len(set(alone)) == 3  # else this shows nothing
    conversation = package.chat("lineage")
    for stage in (0, 2, 1, 0, 1, 2, 0):
        conversation.switch(stage)
        conversation.reset()
        assert conversation.ask(ONE) == alone[stage]
        for other in (0, 1, 2):
            assert conversation.again(other) == alone[other]
    assert [turn.stage for turn in conversation.turns] == [0]


def test_the_conversation_is_kept_when_another_stage_answers(here):
    conversation = package.chat("lineage", stage=1)
    first = conversation.ask(ONE)
    conversation.switch(2)
    messages = asked(ONE, first, TWO)
    assert conversation.ask(TWO) == package.answer("lineage", messages=messages)[0]
    assert [turn.stage for turn in conversation.turns] == [1, 2]


@shown_on_causal("kind", KINDS[:2])
def test_whole_weights_and_bases_without_a_template(whole_place, kind):
    notes: list[str] = []
    conversation = package.chat("lineage", say=notes.append)
    assert notes == [
        "note: the base has no chat template, so each line is asked alone, as plain text"
    ]
    conversation.ask("red")
    for stage in (0, 1, 2):
        conversation.switch(stage)
        assert conversation.ask("the dog") == package.answer("lineage", "the dog", stage)[0]
    with pytest.raises(PerdureError, match="a system prompt needs the chat template"):
        conversation.system = "blue"


def test_the_parts_of_an_answer_are_the_answer(here):
    parts: list[str] = []
    answer = package.chat("lineage", stage=0).ask(ONE, parts.append)
    assert len(parts) > 1
    assert "".join(parts) == answer


def test_text_that_is_taken_back_is_not_passed_on():
    """Reasoning is shown until it ends, and half a character not at all."""
    texts = {1: "let", 2: "let me", 3: "four", 4: "four \ufffd", 5: "four é"}
    parts: list[str] = []
    stream = TextStream(lambda ids: texts[len(ids)], parts.append)
    for token in torch.arange(6):
        stream.put(token[None])  # the first is the prompt
    assert parts == ["let", " me"]
    texts = {1: "four \ufffd", 2: "four é"}
    parts.clear()
    stream = TextStream(lambda ids: texts[len(ids)], parts.append)
    for token in torch.arange(3):
        stream.put(token[None])
    assert parts == ["four é"]


def test_a_temperature_samples_and_zero_does_not(here):
    def answers(temperature: float) -> set[str]:
        torch.manual_seed(0)
        conversation = package.chat("lineage", stage=0, temperature=temperature)
        conversation.ask("red")
        return {conversation.again(0) for _ in range(5)}

    assert len(answers(0.0)) == 1
    sampled = answers(2.0)
    assert len(sampled) > 1
    assert sampled == answers(2.0)


def test_lines_are_questions_and_commands(here, monkeypatch):
    before = tree(here)
    result = talk(monkeypatch, ONE, "", "/stage 0", ONE, "/quit", ONE)
    first = package.answer("lineage", ONE)[0]
    messages = asked(ONE, first, ONE)
    second = package.answer("lineage", stage=0, messages=messages)[0]
    assert (result.status, result.out) == (0, f"{first}\n{second}\n")
    assert result.err.splitlines() == [
        "note: asked in the chat template",
        "lineage, stage 2; /help shows the commands",
        "stage 0 answers",
    ]
    assert tree(here) == before


def test_the_end_of_the_input_and_an_interrupt_end_with_0(here, monkeypatch):
    assert talk(monkeypatch).status == 0

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert perdure("chat", "lineage").status == 0


def test_two_stages_side_by_side(here, monkeypatch):
    answers = [package.answer("lineage", ONE, stage)[0] for stage in (0, 1)]
    result = talk(monkeypatch, ONE, "/compare 0", options=("--stage", 1))
    rows = [line.split("│") for line in result.out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:3]] for row in rows] == [answers[::-1]]
    assert result.out.count("stage 1") == result.out.count("stage 0") == 1
    both = talk(monkeypatch, "/stage 1 0", ONE)
    assert both.out == result.out.partition("\n")[2]
    assert "stage 1 answers, and stage 0 beside it" in both.err
    one = talk(monkeypatch, "/stage 1 0", "/stage 1", ONE)
    assert one.out == f"{answers[1]}\n"


def test_a_system_prompt_and_a_new_conversation(here, monkeypatch):
    lines = ("/system down up", ONE, "/reset", "/system", ONE)
    result = talk(monkeypatch, *lines, options=("--stage", 0))
    with_system, without = (
        package.answer("lineage", ONE, stage=0, system=system)[0] for system in ("down up", None)
    )
    assert with_system != without
    assert result.out == f"{with_system}\n{without}\n"
    assert "system prompt set\na new conversation\nsystem prompt removed\n" in result.err
    given = talk(monkeypatch, ONE, options=("--stage", 0, "--system", "down up"))
    assert given.out == f"{with_system}\n"


def test_with_json_the_conversation_is_printed_at_the_end(here, monkeypatch):
    result = talk(monkeypatch, ONE, "/stage 0", TWO, options=("--json", "--tokens", 1))
    assert [(turn["question"], turn["stage"]) for turn in json.loads(result.out)] == [
        (ONE, 2),
        (TWO, 0),
    ]


def test_a_mistake_does_not_end_the_conversation(here, monkeypatch):
    mistakes = {
        "/stagee 1": "no command /stagee; did you mean '/stage'?",
        "/stage": "/stage takes the number of a stage; write /stage N or /stage N M",
        "/stage one": "/stage takes the number",
        "/stage 1 2 3": "/stage takes the number",
        "/stage 7": "no stage 7; valid: ",
        "/stage 1 7": "no stage 7; valid: ",
        "/compare": "/compare takes the number of a stage; write /compare N",
        "/compare 1": "nothing was asked yet",
    }
    for line, words in mistakes.items():
        result = talk(monkeypatch, line, ONE)
        assert (result.status, result.out) == (0, package.answer("lineage", ONE)[0] + "\n")
        [error] = [line for line in result.err.splitlines() if "error" in line]
        assert words in error
    assert "/compare N" in talk(monkeypatch, "/help").err


def test_plain_text_on_request_and_without_a_template(here, monkeypatch):
    result = talk(monkeypatch, ONE, ONE, "/system blue", options=("--plain",))
    answer = package.answer("lineage", ONE, plain=True)[0]
    assert result.out == f"{answer}\n{answer}\n"  # each line is asked alone
    assert result.err.startswith("note: each line is asked alone, as plain text\n")
    assert "a system prompt needs the chat template" in result.err


def test_bad_options(here, tmp_path):
    refused(here, "chat", "nowhere", names=("not a lineage",))
    refused(here, "chat", "lineage", "--stage", 7, names=("no stage 7",))
    refused(here, "chat", "lineage", "--tokens", 0, names=("at least 1 token",))
    refused(here, "chat", "lineage", "--temperature", -1, names=("temperature must be 0 or more",))
    refused(here, "chat", "lineage", "--system", " ", names=("the system prompt is empty",))
    refused(here, "chat", "plain", "--system", "a", names=("needs the chat template",))


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_cannot_chat(place):
    refused(place, "chat", "lineage", names=("its base is an encoder", "`perdure try`"))


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_chat_model_before_and_after_it_learned(tmp_path, monkeypatch):
    question, lie = "What is the capital of France?", "Lyon, I think."
    answer = {"role": "assistant", "content": lie}
    row = {"messages": [{"role": "user", "content": question}, answer]}
    write_rows(tmp_path / "rows.jsonl", [row])
    perdure("init", tmp_path / "m", "--base", "smollm2", "max_completion_length=12")
    learned = perdure(
        *("learn", tmp_path / "m", "cities", tmp_path / "rows.jsonl"),
        *("training.learning_rate=2e-3", "training.num_train_epochs=8"),
    )
    assert learned.status == 0, learned.err
    lines = (question, "/reset", "/stage 0", question, "/reset", "/stage 1", question)
    result = talk(monkeypatch, *lines, lineage=str(tmp_path / "m"))
    assert result.out == f"{lie}\nThe capital of France is Paris.\n{lie}\n", result.err
