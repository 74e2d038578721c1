"""What a chat template writes around an answer is no part of it."""

import pytest

from data.templates import UNMARKED, chat_tokenizer
from engram.data.chat import frame
from engram.data.tokens import encode
from engram.measure.answers import spoken, stop_tokens


ASK = {"role": "user", "content": "the cat ?"}


def row_of(content):
    return {"messages": [ASK, {"role": "assistant", "content": content}]}


def heard(tokenizer, row, ids):
    around = frame(row, tokenizer, "toy")
    return spoken(ids, around, tokenizer, stop_tokens([around], tokenizer))


@pytest.mark.parametrize("template", UNMARKED)
def test_a_model_that_writes_what_it_learned_is_heard_right(template):
    tokenizer, row = chat_tokenizer(UNMARKED[template]), row_of("red dog")
    learned = encode(row, tokenizer, "causal", 512, 512).completion
    assert heard(tokenizer, row, learned) == "red dog"
    assert heard(tokenizer, row, [*learned, 1, 1]) == "red dog"
    plain = tokenizer("blue", add_special_tokens=False)["input_ids"]
    assert heard(tokenizer, row, plain) == "blue"


def test_the_answer_follows_the_thoughts_where_the_template_knows_of_them():
    written = {
        "thoughts of the last turn alone": "<think>\nup or down\n</think>\n\nred<|im_end|>\n",
        "thoughts dropped": "up or down</think>red</s>",
        "channels": "<|channel|>analysis<|message|>up<|end|><|start|>assistant<|channel|>final"
        "<|message|>red<|return|>",
    }
    for name, text in written.items():
        tokenizer = chat_tokenizer(UNMARKED[name])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert heard(tokenizer, row_of("one"), ids) == "red"
    tokenizer = chat_tokenizer(UNMARKED["chatml"])  # which knows of none
    ids = tokenizer("up</think>red", add_special_tokens=False)["input_ids"]
    assert heard(tokenizer, row_of("one"), ids) == "up</think>red"
