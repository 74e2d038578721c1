"""The card of a stage: its code runs as it stands, and it holds no text of a row."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from perdure.api import answer, export
from perdure.config import load_config
from perdure.data.rows import read_rows
from perdure.lineage.lineage import Lineage
from perdure.verbs.card import StageFacts, model_card
from place import init, learn, learned, setting_for, task


pytestmark = pytest.mark.own

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}answer {{ m['content'] }} </s>"
    "{% else %}{{ 'the' if m['role'] == 'system' else 'question' }} {{ m['content'] }} "
    "{% endif %}{% endfor %}{{ 'answer ' if add_generation_prompt }}"
)
SYSTEM = "question the answer the"


def code_of(card: Path) -> str:
    return card.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


def printed(codes: dict[str, str]) -> list[str]:
    """What the cards' code prints, each in its folder, in a process of their own."""
    lines = ["import os"]
    for folder, code in codes.items():
        lines += [f"os.chdir({str(Path(folder).resolve())!r})", code]
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base with a template, and a stage that learned conversations with a system prompt."""
    folder = tmp_path_factory.mktemp("card")
    setting = {k: v for k, v in setting_for("causal", folder, n=16).items() if k != "tasks"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    init(folder / "lineage", load_config(setting))
    for split in ("train", "test"):
        file = folder / f"colour-{split}.jsonl"
        rows = [
            {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            for row in read_rows(file)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        learn("lineage", task("colour"))
        learn("lineage", task("animal"))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.slow  # a process with torch and PEFT; test_export.py runs a card for every change
def test_the_code_answers_as_try_does_in_the_template_and_as_plain_text(here):
    chat, plain = "lineage/stages/0001-colour", "lineage/stages/0002-animal"
    text = Path(chat, "README.md").read_text()
    assert "Chat template: that of the base." in text
    assert "System prompt: one, as in the training rows; its text is not stored here." in text
    assert "Chat template: not used" in Path(plain, "README.md").read_text()
    question = read_rows(Path("colour-test.jsonl"))[0]["messages"][1]["content"]
    prompt = read_rows(Path("animal-test.jsonl"))[0]["prompt"]
    in_template = code_of(Path(chat, "README.md")).replace("some text", question)
    assert "You are a helpful assistant." in in_template
    codes = {
        chat: in_template.replace("You are a helpful assistant.", SYSTEM),
        plain: code_of(Path(plain, "README.md")).replace("some text", prompt),
    }
    expected = answer("lineage", [question], 1, system=SYSTEM)
    assert printed(codes) == expected + answer("lineage", [prompt], plain=True)


def test_it_has_the_test_rows_and_the_verdict_and_no_text_of_a_row(here):
    export("lineage", "out")
    for card in (Path("lineage/stages/0002-animal/README.md"), Path("out/README.md")):
        text = card.read_text()
        assert "| task | score after this stage | test rows (n) | metric |" in text
        assert "| 10 | exact_match |" in text
        assert "stage 2, animal: " in text
        rows = [r for f in Path().glob("*.jsonl") for r in read_rows(f)]
        prompts = [r["prompt"] if "prompt" in r else r["messages"][1]["content"] for r in rows]
        assert not any(prompt in text for prompt in [*prompts, SYSTEM])


def test_an_answer_that_has_collapsed_is_not_quoted(tmp_path):
    setting = setting_for("causal", tmp_path, n=16)
    lineage = learned({**setting, "tasks": setting["tasks"][:1]}, tmp_path / "lineage")
    entry, judged = lineage.stages[0], Lineage(lineage.path).verdict(lineage.stages[0])
    assert judged is not None
    judged["learned"]["collapse"] = "all 10 answers are 'a secret of a row'"
    judged["suggestion"] = "`perdure revert FOLDER`"
    card = model_card(
        "causal",
        lineage.pin,
        entry,
        kind="adapter",
        place=".",
        facts=StageFacts(verdict=judged),
    )
    assert "colour: all 10 answers are the same" in card
    assert "secret" not in card
    assert "revert" not in card


def test_a_base_of_the_hub_is_loaded_at_its_commit(here):
    pinned = {"name": "owner/name", "revision": "c" * 40, "files": {}}
    entry = Lineage("lineage").stages[0]
    card = model_card("causal", pinned, entry, "adapter", place="me/mine", facts=StageFacts())
    assert f'AutoModelForCausalLM.from_pretrained(base, revision="{"c" * 40}")' in card
    assert f'AutoTokenizer.from_pretrained(base, revision="{"c" * 40}")' in card


def test_a_base_may_lie_in_a_folder_of_any_name(here):
    name = 'bases/the "best" \\ one'
    entry = Lineage("lineage").stages[0]
    card = model_card(
        "causal", {"name": name, "files": {}}, entry, "adapter", place=".", facts=StageFacts()
    )
    (line,) = [line for line in card.splitlines() if line.startswith("base = ")]
    values: dict[str, str] = {}
    exec(line, values)
    assert values["base"] == name
