"""What a row becomes is what TRL's SFTTrainer makes of it, where that takes row and template."""

import json
from datetime import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as template_utils
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from data.templates import MARKED, UNMARKED, chat_tokenizer
from families import llama_like
from methods.recurrent_kif.plain_trainer import PLAIN
from perdure.data.tokens import features
from perdure.errors import PerdureError
from tiny import tiny_model, tiny_tokenizer


# TRL 1.16 has a default under a name that transformers 5.23 has changed; nothing of ours. And it
# warns, as we do, of a joint in the middle of a token.
pytestmark = [
    pytest.mark.own,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

ASK, SAY = {"role": "user", "content": "the cat ?"}, {"role": "assistant", "content": " red dog "}
SYSTEM = {"role": "system", "content": "be good"}
MORE = [{"role": "user", "content": "alpha\nbeta"}, {"role": "assistant", "content": "blue"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "see",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "wait",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "up"}}}],
}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [ASK, SAY]},
    {"messages": [ASK, SAY, *MORE, ASK, SAY]},
    {"messages": [SYSTEM, ASK, SAY, *MORE]},
    {"messages": [ASK, SAY, *MORE], "tools": json.dumps([TOOL])},
    {
        "messages": [ASK, CALL, {"role": "tool", "name": "look", "content": "sky"}, MORE[1]],
        "tools": json.dumps([TOOL]),
    },
]
PAIRS = [
    {"prompt": "question alpha answer :", "completion": " red dog"},
    {"prompt": "question alpha answer :", "completion": "red dog"},
    {"prompt": "a : ", "completion": "red"},
    {"prompt": "a :\n", "completion": "red\n"},
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "\u65e5\u672c ", "completion": "\n\u732b"},
    {"prompt": "a", "completion": "red</s>"},
]
TEXTS = [{"text": "the cat is red"}, {"text": " the cat\n"}, {"text": "the cat</s>"}]


@pytest.fixture(autouse=True)
def day(monkeypatch):
    """Templates that ask TRL for the date are told the day that we tell them."""

    class Day(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    monkeypatch.setattr(template_utils, "datetime", Day)
    template_utils._compile_jinja_template.cache_clear()


def as_trl(rows: Any, tokenizer: PreTrainedTokenizerFast, work: Any, **settings: Any) -> Any:
    settings = {**PLAIN, "bf16": False, "gradient_checkpointing": False, **settings}
    arguments = SFTConfig(output_dir=str(work), max_length=None, **settings)
    keys = dict.fromkeys(key for row in rows for key in row)
    encoded = SFTTrainer(
        tiny_model("causal"),
        arguments,
        train_dataset=Dataset.from_list([{key: row.get(key) for key in keys} for row in rows]),
        processing_class=tokenizer,
    ).train_dataset
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in encoded]


def ours(rows: Any, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Any:
    return features(rows, tokenizer, "causal", 4096, 4096, None, "toy", **settings)[0]


@pytest.mark.parametrize("rows", [PAIRS, TEXTS], ids=["pairs", "text"])
@pytest.mark.parametrize("make", [llama_like, lambda: tiny_tokenizer("causal")])
def test_text(rows, make, tmp_path):
    assert ours(rows, make()) == as_trl(rows, make(), tmp_path)


@pytest.mark.parametrize("template", MARKED)
def test_messages(template, tmp_path):
    rows, tokenizer = CONVERSATIONS, chat_tokenizer(MARKED[template])
    if "must take turns" in MARKED[template]:
        with pytest.raises(PerdureError, match="toy, row 5: the chat template refuses the row"):
            ours(rows, tokenizer)
        rows = rows[:4]
    encoded = ours(rows, tokenizer)
    assert encoded == as_trl(rows, tokenizer, tmp_path, assistant_only_loss=True)
    # Without marks, which SFTTrainer would refuse, the same turns are found one by one.
    assert ours(rows, chat_tokenizer(UNMARKED[template])) == encoded


@pytest.mark.parametrize("template", UNMARKED)
def test_prompt_and_completion_of_messages(template, tmp_path):
    tokenizer = chat_tokenizer(UNMARKED[template])
    cuts = [([ASK, SAY], 1), ([SYSTEM, ASK, SAY, *MORE], 4), ([ASK, SAY, *MORE], 1)]
    rows = [{"prompt": messages[:cut], "completion": messages[cut:]} for messages, cut in cuts]
    assert ours(rows, tokenizer) == as_trl(rows, tokenizer, tmp_path)


def test_settings_of_the_template(tmp_path):
    tokenizer = chat_tokenizer(MARKED["headers with a date"])
    settings = {"date_string": "1 May 2020"}
    rows = [{"messages": [ASK, SAY], "chat_template_kwargs": settings}]
    assert ours(rows, tokenizer) == as_trl(rows, tokenizer, tmp_path, assistant_only_loss=True)
    assert "1 May 2020" in tokenizer.decode(ours(rows, tokenizer)[0]["input_ids"])
