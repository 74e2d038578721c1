"""On the models whose templates SFTTrainer knows, rows become what it makes of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils

from data.templates import MARKED
from data.test_as_trl import CALL, TOOL, as_trl, day, ours  # noqa: F401 (a fixture)
from families import llama_like
from perdure.data.chat import frame, turns
from perdure.data.remarks import remarks
from perdure.data.rows import Row, answer
from perdure.data.tokens import encode_all, prompts
from perdure.data.training_templates import CHANGES, training_template
from perdure.errors import PerdureError
from perdure.measure.answers import answer_text, special_in, stop_tokens


pytestmark = [
    pytest.mark.own,  # of TRL's newest list
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

FILES = sorted(Path(chat_template_utils.__file__).parent.glob("chat_templates/*.jinja"))
TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in FILES
    if not file.stem.endswith("_training")
}
# Those that SFTTrainer neither finds marks in nor knows, and those that take content in parts only.
REFUSED = [name for name in TEMPLATES if name.startswith(("gemma4", "llama3_"))]
OF_PARTS = ["idefics3", "llava_next", "smolvlm"]
TAKEN = [name for name in TEMPLATES if name not in (*REFUSED, *OF_PARTS)]
ALWAYS = ("deepseek_r1_distill", "glm4moe", "nemotron_3_nano", "qwen2_5", "qwen3")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **others}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "look", "content": text}


SYSTEM = {"role": "system", "content": "be good"}
SILENT_CALL, TOOLS = {**CALL, "content": ""}, json.dumps([TOOL])
TWICE = {**SILENT_CALL, "tool_calls": CALL["tool_calls"] * 2}
PLAIN: list[Row] = [
    {"messages": [user("the cat ?"), assistant("red dog")]},
    {"messages": [SYSTEM, user("the cat ?"), assistant("red dog")]},
    {"messages": [user("red"), assistant("blue"), user("red"), assistant("red")]},
    {"messages": [user(" the"), assistant("blue "), user("dog\n"), assistant("\nred\n")]},
    {"messages": [user("a"), assistant("red"), SYSTEM, user("b"), assistant("blue")]},
]
THOUGHTS: list[Row] = [
    {
        "messages": [
            user("a"),
            assistant("red", reasoning_content="one"),
            user("b"),
            assistant("blue", reasoning_content="two"),
        ]
    },
    {"messages": [user("a"), assistant("red", reasoning_content="one"), user("b"), assistant("a")]},
    {"messages": [user("a"), assistant("red", thinking="one")]},
    {
        "messages": [
            user("a"),
            assistant("<think>\none\n</think>\n\nred"),
            user("b"),
            assistant("a"),
        ]
    },
    {"messages": [user("a"), assistant("<think>\none\n</think>\n\nred")]},
]
CALLS: list[Row] = [
    {"messages": [user("a"), assistant("red")], "tools": TOOLS},
    {"messages": [user("a"), CALL, tool("sky"), assistant("blue")], "tools": TOOLS},
    {"messages": [user("a"), SILENT_CALL, tool("sky"), assistant("blue")], "tools": TOOLS},
    {"messages": [user("a"), TWICE, tool("sky"), tool("up"), assistant("blue")], "tools": TOOLS},
    {
        "messages": [
            *(SYSTEM, user("a"), SILENT_CALL, tool("sky"), CALL, tool("up")),
            *(assistant("blue"), user("b"), SILENT_CALL),
        ],
        "tools": TOOLS,
    },
]
ROWS = PLAIN + THOUGHTS + CALLS


def some_fast(names: list[str]) -> list[Any]:
    """Parameters: one template of each kind of change runs always, the others in the slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in ALWAYS else [slow]) for name in names]


def made_for(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer with this template, and the special tokens that it writes."""
    tokenizer = llama_like()
    special = re.findall(r"<[|｜][^<>'\"{}]+[|｜]>|<(?:start|end)_of_turn>|</?think>", template)
    special += re.findall(r"<\|?[a-z]+\|?>(?=\\n' -)|<\|?channel\|?>", template)
    tokenizer.add_tokens(sorted(set(special)), special_tokens=True)
    tokenizer.add_tokens(["\n\n"])  # as real tokenizers join them
    tokenizer.chat_template = template
    return tokenizer


def taken(rows: list[Row], tokenizer: PreTrainedTokenizerFast, template: str) -> list[Row]:
    """The rows that the template takes; the others are refused by name."""
    accepted = []
    for row in rows:
        messages = row.get("messages") or row["prompt"] + row["completion"]
        tools = json.loads(row.get("tools", "null"))
        try:
            tokenizer.apply_chat_template(messages, tools=tools, chat_template=template)
        except (TemplateError, TypeError):
            with pytest.raises(PerdureError, match="toy, row 1: the chat template refuses the row"):
                ours([row], tokenizer)
        else:
            accepted.append(row)
    return accepted


@pytest.mark.parametrize("name", some_fast(TAKEN))
def test_messages(name, tmp_path):
    tokenizer = made_for(TEMPLATES[name])
    training = chat_template_utils.get_training_chat_template(tokenizer) or TEMPLATES[name]
    rows = taken(ROWS, tokenizer, training)
    assert len(rows) > 5
    assert ours(rows, tokenizer) == as_trl(rows, tokenizer, tmp_path, assistant_only_loss=True)


@pytest.mark.parametrize("name", some_fast(TAKEN))
def test_prompt_and_completion(name, tmp_path):
    tokenizer = made_for(TEMPLATES[name])
    rows: list[Row] = [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        | {key: row[key] for key in row if key != "messages"}
        for row in ROWS
    ]
    rows = taken(rows, tokenizer, TEMPLATES[name])
    assert ours(rows, tokenizer) == as_trl(rows, tokenizer, tmp_path)


@pytest.mark.parametrize("name", some_fast(TAKEN + REFUSED))
def test_what_is_asked_begins_what_is_learned(name):
    tokenizer = made_for(TEMPLATES[name])
    # Without the answer whose first token spans the end of the prompt, and the call beside words.
    for row in PLAIN[:3] + PLAIN[4:] + THOUGHTS + CALLS[:1] + CALLS[2:4]:
        try:
            learned = ours([row], tokenizer, mask_history=True)[0]
        except PerdureError:  # as TRL does
            continue
        prompt = prompts([row], tokenizer, "causal", 4096, "toy")[0][0]
        if "nothink" not in name or row not in THOUGHTS:  # which asks for none
            assert learned["input_ids"][: len(prompt)] == prompt, row
        around = frame(row, tokenizer, "toy")
        stops, special_ids = stop_tokens([around], tokenizer), special_in([answer(row)], tokenizer)
        decoded_answer = answer_text(
            learned["input_ids"][len(prompt) :], around, tokenizer, stops, special_ids
        )
        whole, last = answer(row).strip(), answer(row).split("</think>")[-1].strip()
        assert decoded_answer in (whole, last), row


@pytest.mark.parametrize("name", some_fast(REFUSED))
def test_templates_that_trl_refuses(name):
    tokenizer = made_for(TEMPLATES[name])
    with pytest.raises(ValueError, match="not training-compatible"):
        chat_template_utils.get_training_chat_template(tokenizer)
    assert ours(PLAIN, tokenizer)


def test_every_change_is_of_a_template_that_is_known():
    changed = [name for name, template in TEMPLATES.items() if training_template(template)]
    assert len(changed) == len(CHANGES)
    assert set(changed) <= set(TAKEN)
    assert training_template(TEMPLATES["qwen3"] + " ") is None
    assert not any(training_template(template) for template in MARKED.values())


def test_named_variants_take_the_default():
    tokenizer, named = made_for(TEMPLATES["qwen3"]), made_for(TEMPLATES["qwen3"])
    named.chat_template = {"default": TEMPLATES["qwen3"], "tool_use": TEMPLATES["qwen2_5"]}
    assert ours(PLAIN + CALLS, named) == ours(PLAIN + CALLS, tokenizer)
    assert named.chat_template["default"] == TEMPLATES["qwen3"]  # which is what a stage saves


def test_turns_of_which_only_the_call_is_written():
    """An edited template is no known one; the content beside a call is left out by this one."""
    tokenizer = made_for(TEMPLATES["gptoss"] + "{# edited #}")
    row = CALLS[1]
    text = tokenizer.apply_chat_template(row["messages"], tools=[TOOL], tokenize=False)
    call, last = (text[turn] for _, turn in turns(row, tokenizer, "toy"))
    assert call == ' to=functions.look<|channel|>commentary json<|message|>{"at": "up"}<|call|>'
    assert last == "<|channel|>final<|message|>blue<|return|>"


def remarked(rows, tokenizer):
    encoded = encode_all(rows, tokenizer, "causal", 10**6, 10**6, "toy")
    return remarks(rows, encoded, tokenizer, "causal", "toy")


def test_a_prompt_that_asks_for_another_answer_is_said():
    tokenizer = made_for(TEMPLATES["qwen3_5_nothink"])
    (line,) = remarked(PLAIN[:1] + THOUGHTS[:1], tokenizer)
    assert (
        "in 1 of 2 rows (first: row 2) the chat template's generation prompt does not fit" in line
    )
    assert not remarked(PLAIN[:4], made_for(TEMPLATES["qwen3_5_think"]))
