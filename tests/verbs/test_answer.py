"""`try`: a stage answers prompts as it answers test rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from command import perdure, refused, tree, write_rows
from perdure import PerdureError
from perdure.api import answer, chat, check, evaluate
from perdure.api import learn as perdure_learn
from perdure.config import load_config
from perdure.data.conversations import unanswered
from perdure.data.rows import in_place_of, read_rows
from perdure.lineage.lineage import Lineage
from perdure.measure import predict
from place import init, learned, setting_for
from tiny import KINDS, tiny_rows


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
    autocast, original = [], predict.generate_ids

    def generate(*arguments, **settings):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return original(*arguments, **settings)

    monkeypatch.setattr(predict, "generate_ids", generate)
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


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}answer {{ m['content'] }} </s>"
    "{% else %}{{ 'the' if m['role'] == 'system' else 'question' }} {{ m['content'] }} "
    "{% endif %}{% endfor %}{{ 'answer ' if add_generation_prompt }}"
)
IN_TEMPLATE = "note: asked in the chat template"
AS_TEXT = "note: asked as plain text"


def chat_rows() -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in tiny_rows("colour", 8)
    ]


@pytest.fixture(scope="module")
def chat_place(tmp_path_factory) -> Path:
    """A base with a chat template, and two lineages: stage 1 of `chat` learned conversations."""
    folder = tmp_path_factory.mktemp("chat")
    setting = {k: v for k, v in setting_for("causal", folder).items() if k != "tasks"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    for name, rows in (("chat", chat_rows()), ("plain", list(tiny_rows("colour", 8)))):
        init(folder / name, load_config(setting))
        perdure_learn(folder / name, "colour", rows)
    return folder


@pytest.fixture
def here(chat_place, monkeypatch) -> Path:
    monkeypatch.chdir(chat_place)
    return chat_place


@pytest.fixture
def asked(monkeypatch) -> list:
    """The rows that the model is asked; it is not run."""
    rows: list = []

    def predict(base, given, **settings):
        rows.extend(given)
        return ["red"] * len(given), 0

    monkeypatch.setattr("perdure.verbs.answer.predict", predict)
    return rows


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_template_is_used_if_the_stage_was_trained_with_it(here, asked):
    for folder, stage, in_template in (
        ("chat", None, True),
        ("chat", 0, True),  # the base is asked as the tasks are
        ("plain", 1, False),
        ("plain", 0, False),
    ):
        asked.clear()
        notes: list[str] = []
        answer(folder, "red", stage, say=notes.append)
        assert ("messages" in asked[0]) == in_template
        [note] = notes
        assert note.startswith(IN_TEMPLATE if in_template else AS_TEXT)
        assert ("--plain" if in_template else "--chat") in note
    assert Lineage("chat").stages[0]["task"]["chat"] is True
    assert "chat" not in Lineage("plain").stages[0]["task"]


def test_the_template_of_a_base_that_has_learned_nothing(here, asked, tmp_path):
    init(tmp_path / "new", load_config({"base": "base"}))
    answer(tmp_path / "new", "red")
    assert asked == [{"messages": [user("red"), {"role": "assistant", "content": "?"}]}]


def test_either_form_can_be_asked_for(here, asked):
    result = perdure("try", "chat", "red", "--plain")
    assert (result.status, result.err) == (0, f"{AS_TEXT}\n")
    result = perdure("try", "plain", "red", "--chat")
    assert (result.status, result.err) == (0, f"{IN_TEMPLATE}\n")
    assert asked[0] == {"prompt": "red", "completion": " ?"}
    assert asked[1]["messages"][:-1] == [user("red")]


def test_a_system_prompt_stands_before_the_question(here):
    without, with_it = answer("chat", "red red"), answer("chat", "red red", system="blue blue")
    assert without != with_it
    conversation = [{"role": "system", "content": "blue blue"}, user("red red")]
    assert answer("chat", messages=conversation) == with_it
    result = perdure("try", "plain", "red", "--system", "blue", "--stage", 0)
    assert result.err == f"{IN_TEMPLATE}\n"


def test_a_system_prompt_that_the_template_leaves_out_is_said(chat_place, tmp_path):
    base = shutil.copytree(chat_place / "base", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    only_users = "{% if m['role'] == 'user' %}question {{ m['content'] }} {% endif %}"
    tokenizer.chat_template = f"{{% for m in messages %}}{only_users}{{% endfor %}}"
    tokenizer.save_pretrained(base)
    init(tmp_path / "new", load_config({"base": str(base)}))
    lines: list[str] = []
    answer(tmp_path / "new", "red", system="blue", say=lines.append)
    chat(tmp_path / "new", system="blue", say=lines.append)
    check(base, against=base, system="blue", limit=7, say=lines.append)
    said = [line for line in lines if "does not write the turns of the role system" in line]
    assert len(said) == 3
    answer(tmp_path / "new", "red", say=lines.append)
    chat(tmp_path / "new", say=lines.append)
    check(base, against=base, limit=7, say=lines.append)
    assert len([line for line in lines if line.startswith("warning")]) == 3


def test_a_conversation_is_answered_from_a_file(here, asked, tmp_path):
    one = [user("red"), {"role": "assistant", "content": "blue"}, user("green")]
    (tmp_path / "one.json").write_text(json.dumps(one))
    write_rows(tmp_path / "rows.jsonl", [{"messages": one}, {"messages": one[:1], "id": 3}])
    for messages in (one, [{"messages": one}], [one]):
        asked.clear()
        assert answer("chat", messages=messages) == ["red"]
        assert asked[0]["messages"][:-1] == one
    result = perdure("try", "chat", "--messages", tmp_path / "one.json", "--json")
    assert result.json == [{"messages": one, "answer": "red"}]
    result = perdure("try", "plain", "--messages", tmp_path / "rows.jsonl", "--system", "two")
    assert (result.out, result.err) == ("red\nred\n", f"{IN_TEMPLATE}\n")
    assert [m["content"] for m in asked[-1]["messages"]] == ["two", "red", "?"]


def test_messages_that_cannot_be_answered(here, tmp_path):
    def bad(content: object, *more: str, names: tuple[str, ...]) -> None:
        (tmp_path / "bad.json").write_text(json.dumps(content))
        refused(here, "try", "chat", "--messages", tmp_path / "bad.json", *more, names=names)

    answered = [user("red"), {"role": "assistant", "content": "blue"}]
    bad(answered, names=("bad.json: messages must end with one of the user's",))
    bad([{"messages": answered}], names=("bad.json, row 1: messages must end with",))
    bad([], names=("bad.json: there are no messages",))
    bad(["red"], names=("bad.json, row 1: expected messages",))
    bad([user("")], names=("the content of message 1 is empty",))
    with_system = [{"role": "system", "content": "one"}, user("red")]
    bad(with_system, "--system", "two", names=("already have a system prompt", "--system"))
    bad([user("red")], "--plain", names=("--messages needs the chat template, which --plain",))
    bad([user("red")], "green", names=("both given",))
    refused(here, "try", "chat", names=("nothing to answer", "--messages FILE"))
    refused(here, "try", "chat", "red", "--system", " ", names=("the system prompt is empty",))
    refused(here, "try", "chat", "red", "--chat", "--plain", names=("--chat needs",))


@pytest.mark.parametrize("kind", ["causal"])
def test_a_base_without_a_template(place):
    for option in ({"chat": True}, {"system": "two"}):
        (name,) = option
        with pytest.raises(PerdureError, match=f"no chat template, which --{name} needs"):
            answer("lineage", ["red"], **option)  # type: ignore[arg-type]
    with pytest.raises(PerdureError, match="no chat template, which --messages needs"):
        answer("lineage", messages=[user("red")])
    notes: list[str] = []
    answer("lineage", "red", plain=True, say=notes.append)
    assert notes == []


@pytest.mark.parametrize("kind", ["causal"])
def test_an_empty_prompt(place):
    with pytest.raises(PerdureError, match="the prompt is empty"):
        answer("lineage", ["red", " "])


def test_an_option_follows_a_plain_prompt_as_it_does_in_a_row():
    """Most tokenizers attach the space to the answer's first token."""
    for prompt, given in (("mood :", " good"), ("mood : ", "good"), ("mood\n", "good")):
        row = unanswered(prompt)
        assert in_place_of(row["completion"], "good") == given
        assert in_place_of(row["completion"], " good") == given
